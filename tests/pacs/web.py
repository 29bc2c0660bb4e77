"""A DICOMweb server within the test's own process that answers as a test tells it to."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, str, bytes]


@dataclass
class Asked:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebArchive:
    """`answer(asked)`: status, content type, body; a body longer than it says is cut by `cut` bytes."""

    answer: Callable[[Asked], Answer]
    cut: int = 0
    asked: list[Asked] = field(default_factory=list)
    url: str = ""


@contextmanager
def running_web(archive: WebArchive, tls: ssl.SSLContext | None = None) -> Iterator[WebArchive]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, dict(self.headers.items()), body)
            archive.asked.append(asked)
            status, kind, content = archive.answer(asked)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - archive.cut])
            if archive.cut:
                self.close_connection = True

        do_POST = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)  # in its thread
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    archive.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/dicom-web"
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
