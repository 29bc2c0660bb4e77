"""The OHIF viewer, served to a browser on this machine with an Orthanc's DICOMweb at the same origin, as a hospital's reverse proxy would.

OHIF is not installed by any package of Python's or Debian's: `.ci/ohif` gets it from npm. `DIST` is where it lies, or None.
"""

from __future__ import annotations

import http.client
import json
import mimetypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.pacs.orthanc import Orthanc

VERSION = "3.12.10"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "radloop" / f"ohif-{VERSION}"
"""Where `.ci/ohif` leaves it, so that it is fetched once."""
PASSED_ON_S = 60
DICOM_WEB = "/dicom-web"
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-store",
}
"""Without the first two a browser has no SharedArrayBuffer, which OHIF's volumes want. The last, because phantoms of several tests share
their UIDs: a browser would show what it has seen under them before."""
CONFIGURATION = {
    "routerBasename": None,
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "maxNumberOfWebWorkers": 2,
    "showLoadingIndicator": True,
    "showWarningMessageForCrossOrigin": False,
    "showCPUFallbackMessage": False,
    "strictZSpacingForVolumeViewport": True,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "pacs",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "pacs",
            "configuration": {
                "friendlyName": "Orthanc",
                "name": "pacs",
                "wadoUriRoot": DICOM_WEB,
                "qidoRoot": DICOM_WEB,
                "wadoRoot": DICOM_WEB,
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "omitQuotationForMultipartRequest": True,
                "bulkDataURI": {"enabled": True},
            },
        }
    ],
}


def _dist() -> Path | None:
    named = os.environ.get("RADLOOP_OHIF")
    for folder in [Path(named)] if named else [CACHE / "dist"]:
        if (folder / "index.html").is_file():
            return folder
    return None


DIST = _dist()


@contextmanager
def served_ohif(orthanc: Orthanc, dist: Path) -> Iterator[str]:
    """Serves `dist` and passes `/dicom-web` on to `orthanc`; its URL, without a slash at its end."""

    class Handler(_Handler):
        pacs = urlsplit(orthanc.url).netloc
        root = dist.resolve()

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="ohif", daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    pacs: str
    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith(DICOM_WEB):
            self._pass_on()
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", f"window.config = {json.dumps(CONFIGURATION)};".encode())
        else:
            self._file(path)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a test's output is for the test."""

    def _file(self, path: str) -> None:
        """A file of OHIF's; for any other path, of which there are as many as the viewer has pages, its one page."""
        file = (self.root / path.lstrip("/")).resolve()
        if not file.is_relative_to(self.root) or not file.is_file():
            file = self.root / "index.html"
        kind = "application/wasm" if file.suffix == ".wasm" else mimetypes.guess_type(file.name)[0]
        self._answer(200, kind or "application/octet-stream", file.read_bytes())

    def _pass_on(self) -> None:
        """To Orthanc with the browser's Host, from which it makes the URLs in its answers."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        headers = {
            name: value for name, value in self.headers.items() if name.lower() in ("host", "accept", "content-type")
        }
        connection = http.client.HTTPConnection(self.pacs, timeout=PASSED_ON_S)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheader("Content-Type") or "application/json", answer.read())
        finally:
            connection.close()

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
