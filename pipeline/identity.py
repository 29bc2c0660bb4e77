"""Patient identity, hashed: HMAC-SHA256 of PatientID and AccessionNumber under the project's key.

The key is `RADLOOP_KEY`, or the file `.radloop-key` of the project folder (owner-only, made when first needed, never
printed). The same key gives the same hash, so that a label sheet's values join an index without either holding them in clear.
"""

from __future__ import annotations

import hmac
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError

KEY_FILE = ".radloop-key"
KEY_VARIABLE = "RADLOOP_KEY"
MINIMUM_KEY_CHARACTERS = 16  # a shorter one can be guessed, and patient IDs are short numbers
HASH_CHARACTERS = 32  # 128 bits: no two of any number of patients collide

FINGERPRINT_CHARACTERS = 12
_ANY = ("utf-8", "surrogateescape")
"""Paths may hold bytes that are no letters."""


@dataclass(frozen=True)
class IdentityKey:
    """A project's secret. `repr` does not show it."""

    secret: bytes = field(repr=False)

    def patient(self, patient_id: str, issuer: str = "") -> str | None:
        """Hash of a PatientID within its issuer; None where there is no ID."""
        return self._digest("patient", issuer.strip(), patient_id.strip()) if patient_id.strip() else None

    def accession(self, accession_number: str) -> str | None:
        """Hash of an AccessionNumber; None where it is empty."""
        return self._digest("accession", accession_number.strip()) if accession_number.strip() else None

    def keyed(self, purpose: str, *parts: str) -> bytes:
        """32 bytes that only this key makes of these parts for this purpose; of another purpose's bytes they say nothing."""
        message = b"".join(
            len(part).to_bytes(8, "big") + part for part in (one.encode(*_ANY) for one in (purpose, *parts))
        )
        return hmac.new(self.secret, b"\x1d" + message, "sha256").digest()

    @property
    def fingerprint(self) -> str:
        """Tells two keys apart without saying anything of either: hashes join only where it is the same."""
        return self._digest("fingerprint")[:FINGERPRINT_CHARACTERS]

    def _digest(self, *parts: str) -> str:
        message = "\x1f".join(parts).encode()
        return hmac.new(self.secret, message, "sha256").hexdigest()[:HASH_CHARACTERS]


def ephemeral_key() -> IdentityKey:
    """A key for one process, where no hash outlives it (inference)."""
    return IdentityKey(secrets.token_bytes(32))


def project_key(folder: Path) -> IdentityKey:
    """The key of `RADLOOP_KEY`, else of `folder/.radloop-key`, which is made (mode 0600) where it does not exist."""
    from_environment = os.environ.get(KEY_VARIABLE)
    if from_environment is not None:
        return _checked(from_environment, f"the environment variable {KEY_VARIABLE}")
    path = folder / KEY_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _checked(path.read_text().strip(), str(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: the project's key cannot be made here ({error.strerror}); set {KEY_VARIABLE} or work in a folder you can write"
        ) from error
    with os.fdopen(descriptor, "w") as file:
        key = secrets.token_hex(32)
        file.write(key + "\n")
    print(
        f"made {path}: the key of this project's hashes; keep it, and keep it out of version control", file=sys.stderr
    )
    return _checked(key, str(path))


def _checked(key: str, where: str) -> IdentityKey:
    if len(key) < MINIMUM_KEY_CHARACTERS:
        raise ConfigError(
            f"{where}: expected a key of at least {MINIMUM_KEY_CHARACTERS} characters, found {len(key)}; "
            "restore the project's key, or remove it to start with a new one (hashes made with the old one no longer join)"
        )
    return IdentityKey(key.encode())
