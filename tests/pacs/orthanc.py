"""Debian's Orthanc with its DICOMweb plugin, for as long as a test needs it: free ports, an empty storage of its own, gone afterwards.

Its DICOM port listens on all interfaces (Orthanc cannot do otherwise), so it is never left running: it ends with the `with` block, and
with the process that started it.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROGRAM = shutil.which("Orthanc") or ""
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
IS_INSTALLED = bool(PROGRAM) and PLUGIN.exists()
AET = "TESTPACS"
STARTED_S, ENDED_S, ANSWERED_S = 30, 10, 60
"""Up in 0.4 s on an idle machine; a busy one gets its time."""
ATTEMPTS = 3
"""Another program may take a port between its choice and its use."""


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc. `url`: of its REST API, without a slash at its end."""

    url: str
    dicom_port: int

    @property
    def dicom_web(self) -> str:
        return f"{self.url}/dicom-web"

    def stow(self, paths: Sequence[Path]) -> Mapping[str, Any]:
        """Stores files by STOW-RS (PS3.18 10.5); its answer, in the DICOM JSON model."""
        boundary = uuid.uuid4().hex
        parts = [
            b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (boundary.encode(), path.read_bytes())
            for path in paths
        ]
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        return json.loads(
            self._ask("/dicom-web/studies", body, {"Content-Type": kind, "Accept": "application/dicom+json"})
        )

    def c_store(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Sends all files below `folder` by C-STORE with dcmtk's storescu; `-R` proposes only the SOP classes that are there."""
        command = ["storescu", "-R", "-aec", AET, "+sd", "+r", "localhost", str(self.dicom_port), str(folder)]
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=ANSWERED_S, check=False
        )

    def qido(self, path: str) -> list[dict[str, Any]]:
        """QIDO-RS: what is found at `studies/...`, in the DICOM JSON model."""
        return json.loads(self._ask(f"/dicom-web/{path}", headers={"Accept": "application/dicom+json"}) or b"[]")

    def count(self) -> int:
        """Instances in its storage."""
        return int(json.loads(self._ask("/statistics"))["CountInstances"])

    def wado(self, study: str, series: str, instance: str) -> bytes:
        """The instance as a DICOM file, by WADO-RS, in the transfer syntax in which it is stored."""
        asked = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        answer = self._ask(
            f"/dicom-web/studies/{study}/series/{series}/instances/{instance}", headers={"Accept": asked}
        )
        boundary = answer[: answer.index(b"\r\n")]
        head, part = answer[len(boundary) + 2 :].split(b"\r\n\r\n", 1)
        assert b"application/dicom" in head
        return part[: part.rindex(b"\r\n" + boundary)]

    def rendered(self, study: str, series: str, instance: str, frame: int = 1) -> NDArray[np.uint8]:
        """(rows, columns, 3) of a frame (from 1) as the PACS draws it, by WADO-RS `rendered`, losslessly."""
        path = f"/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/{frame}/rendered"
        return np.asarray(Image.open(BytesIO(self._ask(path, headers={"Accept": "image/png"}))).convert("RGB"))

    def know(self, aet: str, port: int) -> None:
        """From now on it can send to the node of this title on this machine, and answers it."""
        body = json.dumps({"AET": aet, "Host": "127.0.0.1", "Port": port}).encode()
        self._ask(f"/modalities/{aet}", body, method="PUT")

    def delete_all(self) -> None:
        """Empties its storage."""
        for study in json.loads(self._ask("/studies")):
            self._ask(f"/studies/{study}", method="DELETE")

    def _ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", body, dict(headers or {}), method=method)
        with urllib.request.urlopen(request, timeout=ANSWERED_S) as answer:
            return answer.read()


@contextmanager
def running_orthanc(folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[Orthanc]:
    """An empty Orthanc with its files in `folder`, which must exist; `settings` of its configuration beside the usual ones."""
    process, orthanc = _started(folder, settings or {})
    try:
        yield orthanc
    finally:
        process.terminate()
        try:
            process.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(ENDED_S)


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("", 0))
        return int(any_port.getsockname()[1])


def _started(folder: Path, settings: Mapping[str, Any]) -> tuple[subprocess.Popen[bytes], Orthanc]:
    log = folder / "orthanc.log"
    for _ in range(ATTEMPTS):
        orthanc = Orthanc(f"http://localhost:{free_port()}", free_port())
        (folder / "orthanc.json").write_text(json.dumps({**_configuration(folder, orthanc), **settings}))
        # setpriv: it ends with this process, however that ends
        command = ["setpriv", "--pdeathsig", "TERM", PROGRAM, str(folder / "orthanc.json")]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder)
        if _answers(process, orthanc):
            return process, orthanc
        process.kill()
        process.wait(ENDED_S)
    raise RuntimeError(f"Orthanc does not start; its log ends with\n{log.read_text(errors='replace')[-2000:]}")


def _configuration(folder: Path, orthanc: Orthanc) -> dict[str, Any]:
    return {
        "Name": "tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": int(orthanc.url.rsplit(":", 1)[1]),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": orthanc.dicom_port,
        "DicomAet": AET,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
        "OverwriteInstances": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "ConcurrentJobs": 1,
        "SaveJobs": False,
    }


def _answers(process: subprocess.Popen[bytes], orthanc: Orthanc) -> bool:
    """Waits until it answers; False where it has ended, or does not answer in time."""
    deadline = time.monotonic() + STARTED_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            orthanc.qido("studies")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
        else:
            return True
    return False
