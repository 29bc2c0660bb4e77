"""Who is in the generated export: patients, their scanners, and what each has; settled before anything is drawn.

Patients come in pairs, one with and one without opacities, alike in all that is planned here, so that none of it tells the
class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

# fmt: off
WOMEN = (
    "Ada", "Bela", "Cleo", "Dora", "Edda", "Fina", "Gesa", "Hilda", "Ida", "Jette",
    "Klara", "Lina", "Mara", "Nora", "Olga", "Paula", "Rosa", "Thea", "Vera", "Zora",
)
MEN = (
    "Arno", "Bruno", "Carlo", "Dirk", "Egon", "Falk", "Gero", "Hugo", "Ivo", "Jan",
    "Kaspar", "Luis", "Milo", "Nils", "Otto", "Piet", "Rolf", "Sven", "Theo", "Veit",
)
# fmt: on


@dataclass(frozen=True)
class Scanner:
    """What a make of scanner does to its images. Noise in HU for a body of average size."""

    maker: str
    model: str
    signed: bool
    curved_table: bool
    lung_kernel: str
    soft_kernel: str
    noise_hu: float
    sharpening: float
    thickness_mm: float


SCANNERS = (
    Scanner("Phantom Scanners A", "A-16", True, True, "LUNG", "STANDARD", 34.0, 0.5, 1.25),
    Scanner("Phantom Scanners B", "B-64", False, False, "B70f", "B30f", 26.0, 0.8, 2.0),
)


@dataclass(frozen=True)
class Patient:
    """What is settled before anything is drawn."""

    number: int
    pair: int
    positive: bool

    @property
    def scanner(self) -> Scanner:
        return SCANNERS[self.pair % 2]

    @property
    def transfer_syntax(self) -> str:
        return JPEGLSLossless if self.pair % 4 in (1, 2) else ExplicitVRLittleEndian

    @property
    def contrast(self) -> bool:
        return self.pair % 3 == 2

    @property
    def soft_series(self) -> bool:
        return self.pair % 2 == 0

    @property
    def studies(self) -> int:
        return 2 if self.pair % 4 == 1 else 1

    @property
    def radiograph(self) -> tuple[str, str] | None:
        """Modality and photometric interpretation of a radiograph, for those who have one."""
        return {0: ("CR", "MONOCHROME1"), 1: ("DX", "MONOCHROME2")}.get(self.pair % 8)

    @property
    def report(self) -> bool:
        return self.pair % 8 == 0

    @property
    def female(self) -> bool:
        return self.pair // 2 % 2 == 0

    @property
    def name(self) -> str:
        """Family name PHANTOM; who shares a given name with another has a number as middle name."""
        names = WOMEN if self.female else MEN
        before = (
            2 * sum((pair // 2 % 2 == 0) == self.female for pair in range(self.pair)) + self.number % 2
        )  # of the same sex
        return f"PHANTOM^{names[before % len(names)]}" + (
            f"^{before // len(names) + 1}" if before >= len(names) else ""
        )


def plan(patients: int, seed: int) -> Iterator[Patient]:
    """Each pair in the order that chance gives."""
    rng = np.random.default_rng([seed, 1])
    first_is_positive = rng.integers(0, 2, size=(patients + 1) // 2)
    for number in range(patients):
        yield Patient(number, number // 2, bool((number + first_is_positive[number // 2]) % 2))
