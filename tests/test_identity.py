"""The project's key: made once, owner-only, never shown; hashes that join, and that differ between projects."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey, ephemeral_key, project_key


def test_a_key_is_made_once_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("RADLOOP_KEY")
    first = project_key(tmp_path)
    assert "keep it out of version control" in capsys.readouterr().err
    assert stat.S_IMODE((tmp_path / ".radloop-key").stat().st_mode) == 0o600
    assert project_key(tmp_path) == first
    assert not capsys.readouterr().err
    assert (tmp_path / ".radloop-key").read_text().strip() not in repr(first)


def test_the_environment_has_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RADLOOP_KEY", "x" * 16)
    assert project_key(tmp_path) == IdentityKey(b"x" * 16)
    assert not (tmp_path / ".radloop-key").exists()
    monkeypatch.setenv("RADLOOP_KEY", "short")
    with pytest.raises(ConfigError, match="at least 16"):
        project_key(tmp_path)


def test_hashes_join_and_separate():
    key, other = ephemeral_key(), ephemeral_key()
    assert key.patient(" 123 ") == key.patient("123")
    assert key.patient("123", "A") != key.patient("123", "B")
    assert key.patient("123") != key.accession("123")
    assert key.patient("123") != other.patient("123")
    assert key.patient("  ") is None
    assert key.fingerprint != other.fingerprint
    assert "123" not in str(key.patient("123")) or len(str(key.patient("123"))) == 32
