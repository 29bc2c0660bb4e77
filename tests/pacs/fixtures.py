"""Fixtures of tests that talk to other machines: `pytest_plugins = ["tests.pacs.fixtures"]` brings them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pacs.certificates import PROGRAM, Certificates, make_certificates
from tests.pacs.orthanc import Orthanc


@pytest.fixture
def pacs(orthanc: Orthanc) -> Iterator[Orthanc]:
    """Empty."""
    orthanc.delete_all()
    yield orthanc
    orthanc.delete_all()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not PROGRAM:
        pytest.skip("openssl is not installed")
    return make_certificates(tmp_path_factory.mktemp("certificates"))
