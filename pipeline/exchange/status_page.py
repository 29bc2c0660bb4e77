"""A page that says how a node does, for people (`/`) and for monitoring (`/status.json`): counts, UIDs and problems, nothing of a patient.

It answers GET alone, knows no other path, and is bound to this machine unless told otherwise.
"""

from __future__ import annotations

import html
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline import RESEARCH_ONLY
from pipeline.errors import ConfigError

REQUEST_S = 10.0
REFRESH_S = 10
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}"><title>radloop {aet}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:70rem}}td,th{{text-align:left;padding:.15rem 1rem .15rem 0}}
td{{font-variant-numeric:tabular-nums}}</style><h1>radloop {aet}</h1><p>{notice}</p><table>{facts}</table>
<h2>Studies</h2><table><tr><th>StudyInstanceUID<th>state<th>failures<th>last change<th>problem</tr>{studies}</table></html>"""


@contextmanager
def served_status(host: str, port: int, status: Callable[[], dict[str, Any]]) -> Iterator[str]:
    """Serves what `status` says; the page's URL. Raises ConfigError where it cannot listen."""

    class Handler(_Handler):
        facts = staticmethod(status)

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"the status page cannot be served at {host}:{port} ({error.strerror}); another --status-port, or 0 for none"
        ) from None
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    facts: Callable[[], dict[str, Any]]
    timeout = REQUEST_S
    server_version, sys_version = "radloop", ""

    def do_GET(self) -> None:
        """The page, or the same as JSON."""
        if self.path == "/status.json":
            self._answer(200, "application/json", json.dumps(self.facts(), indent=1))
        elif self.path == "/":
            self._answer(200, "text/html; charset=utf-8", _page(self.facts()))
        else:
            self._answer(404, "text/plain", "/ or /status.json\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""

    def _answer(self, code: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        self.wfile.write(content)


def _page(facts: dict[str, Any]) -> str:
    def row(*cells: object) -> str:
        return "<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in cells) + "</tr>"

    plain = [
        (name.replace("_", " "), value)
        for name, value in facts.items()
        if not isinstance(value, dict | list) and name != "aet"
    ]
    counts = [
        (f"{name}: {what}", count)
        for name, values in facts.items()
        if isinstance(values, dict)
        for what, count in values.items()
    ]
    studies = [
        row(one["study"], one["state"], one["failures"], _when(one["changed"]), one["problem"])
        for one in facts.get("latest", [])
    ]
    return _PAGE.format(
        refresh=REFRESH_S,
        aet=html.escape(str(facts.get("aet", ""))),
        notice=html.escape(RESEARCH_ONLY),
        facts="".join(row(*pair) for pair in (*plain, *counts)),
        studies="".join(studies),
    )


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""
