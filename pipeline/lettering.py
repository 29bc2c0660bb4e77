"""Letters in pictures and on pages: DejaVu Sans, which comes with matplotlib and has Latin, Greek, Cyrillic and more.

The file is found without importing matplotlib, which takes a second. What the font has no letter for is written without accents, or
as '?'.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

FONT_FILE = Path("mpl-data/fonts/ttf/DejaVuSans.ttf")  # below matplotlib's package
_ANY_SIZE = 16  # pixels: whether there is a letter does not depend on it
_NO_LETTER = "\uffff"  # never one: the font draws its box for missing letters


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, `size` pixels high. Raises RuntimeError where matplotlib comes without its fonts, or Pillow without FreeType."""
    found = find_spec("matplotlib")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    for path in (Path(folder) / FONT_FILE for folder in folders):
        if path.is_file():
            try:
                return ImageFont.truetype(path, size)
            except ImportError:
                raise RuntimeError(
                    "Pillow was built without FreeType and cannot draw text: install its wheel"
                ) from None
    raise RuntimeError(
        f"{FONT_FILE} is not in matplotlib's package {folders}, so no text can be drawn: install its wheel"
    )


def drawable(text: str) -> str:
    """`text` in letters that the font has; white space becomes spaces."""
    return "".join(_drawable_letter(letter) for letter in unicodedata.normalize("NFC", text))


@lru_cache(maxsize=4096)
def _drawable_letter(letter: str) -> str:
    if letter.isspace():
        return " "
    if _has_glyph(letter):
        return letter
    plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    return plain if plain and all(_has_glyph(part) for part in plain) else "?"


def _has_glyph(letter: str) -> bool:
    """Whether the font draws `letter` otherwise than the box for a missing one."""
    return letter.isprintable() and bytes(font(_ANY_SIZE).getmask(letter)) != _box()


@lru_cache(maxsize=1)
def _box() -> bytes:
    return bytes(font(_ANY_SIZE).getmask(_NO_LETTER))
