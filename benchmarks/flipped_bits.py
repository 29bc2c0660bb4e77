"""How many flipped bits in compressed frames go unnoticed, by transfer syntax: python benchmarks/flipped_bits.py DATA/dicom

Of the first frame of each compressed real file (3,000 bytes or more, up to 600,000 samples) single bits beyond the first 1,000 bytes are
flipped, one at a time, always the same ones. Seen: the frame is rejected. The same: it decodes to the same values. Unnoticed: to others.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from pipeline.dicom.codecs import decode_frame
from pipeline.dicom.encapsulation import read_range
from pipeline.dicom.frames import open_image
from pipeline.errors import Rejected

FLIPS_A_FILE = 20
HEADER_BYTES, LEAST_BYTES, MOST_SAMPLES = 1000, 3000, 600_000


def main(folder: Path) -> None:
    """Prints a row a transfer syntax."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    chosen = random.Random(0)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            _flip(path, chosen, counts)
        except Rejected:
            continue
    print("| transfer syntax | flips | seen | the same values | unnoticed |\n|---|---|---|---|---|")
    for syntax, found in sorted(counts.items()):
        total = found.total()
        shares = (f"{found[outcome] / total:.0%}" for outcome in ("seen", "same", "unnoticed"))
        print(f"| {syntax} | {total} | {' | '.join(shares)} |")


def _flip(path: Path, chosen: random.Random, counts: dict[str, Counter[str]]) -> None:
    with open_image(path) as image:
        if not image.fragments:
            return
        stream = b"".join(read_range(image.window, part) for part in image.fragments[0])
        syntax, expected = image.transfer_syntax_uid, image.format
    whole = decode_frame(stream, syntax, expected).samples
    if len(stream) < LEAST_BYTES or whole.size > MOST_SAMPLES:
        return
    for _ in range(FLIPS_A_FILE):
        flipped = bytearray(stream)
        flipped[chosen.randrange(HEADER_BYTES, len(stream) - 4)] ^= 1 << chosen.randrange(8)
        try:
            same = np.array_equal(decode_frame(bytes(flipped), syntax, expected).samples, whole)
        except Rejected:
            counts[syntax]["seen"] += 1
        else:
            counts[syntax]["same" if same else "unnoticed"] += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
