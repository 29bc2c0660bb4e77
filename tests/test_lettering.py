"""Letters that are drawn: a site's own, not their neighbours in ASCII; others are said."""

from __future__ import annotations

import pytest

from pipeline import lettering
from pipeline.lettering import drawable, font


def drawn(text: str) -> bytes:
    return bytes(font(20).getmask(text))


@pytest.mark.parametrize(
    ("letter", "neighbour"),
    [("ü", "u"), ("Ö", "O"), ("ß", "B"), ("ł", "l"), ("×", "x"), ("–", "-"), ("Ω", "O"), ("Я", "R"), ("é", "e")],
)
def test_letters_beyond_ascii_are_drawn(letter: str, neighbour: str) -> None:
    assert drawable(letter) == letter
    assert len({drawn(letter), drawn(neighbour), drawn("?"), drawn("\uffff")}) == 4


def test_accents_that_stand_apart_join_their_letter() -> None:
    assert drawable("fu\u0308r") == "für"


def test_letters_that_the_font_lacks_are_written_plain_or_marked() -> None:
    assert drawable("a\tb") == "a b"
    assert drawable("肺炎") == "??"
    assert drawable("\uff21\u216b") == "AⅫ"  # a full-width A, which the font lacks, and a numeral, which it has
    assert drawable("Research use only - not for diagnosis") == "Research use only - not for diagnosis"


def test_without_the_font_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="install its wheel"):
        font.__wrapped__(20)
