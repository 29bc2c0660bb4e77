"""A headless Chromium with one page, driven by its DevTools protocol over a pipe (`--remote-debugging-pipe`): JSON messages, each ended by
a NUL, to the descriptor 3 and from 4. So no port is opened, and no package is needed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROGRAM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
PATIENCE_S = 60
WITHOUT_GPU = ("--disable-gpu",)
WEBGL_WITHOUT_GPU = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
"""WebGL computed by the processor: what a viewer needs to draw at all on a machine without a graphics card."""
POLL_S = 0.1


class Browser:
    """Chromium with an empty profile in the folder `profile`."""

    def __init__(self, profile: Path, flags: tuple[str, ...] = WITHOUT_GPU) -> None:
        to_it, self._to = os.pipe()
        self._from, from_it = os.pipe()
        ends = f'exec {PROGRAM} "$@" 3<&{to_it} 4>&{from_it}'
        flags = ("--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking", *flags)
        command = ["bash", "-c", ends, "chromium", *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        nowhere = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=(to_it, from_it), stdout=nowhere, stderr=nowhere)
        os.close(to_it)
        os.close(from_it)
        self._number, self._read, self.events = 0, b"", list[dict[str, Any]]()
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Mapping[str, Any]:
        """A command of the protocol; its answer. What else the browser says until then goes to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(
            self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def show(self, url: str, width: int, height: int = 900, *, mobile: bool = False) -> None:
        """Shows `url` anew at a size in CSS pixels, and waits until it is loaded."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is, awaited where it is a promise. AssertionError where it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, what: str, seconds: float = PATIENCE_S) -> Any:
        """The value of `expression` as soon as it is true. AssertionError, naming `what` was waited for, where that takes too long."""
        deadline = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            time.sleep(POLL_S)
        return found

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, **params: Any) -> NDArray[np.uint8]:
        """(rows, columns, 3) of the page as it is on the screen."""
        taken = self.call("Page.captureScreenshot", format="png", **params)
        return np.asarray(Image.open(BytesIO(base64.b64decode(taken["data"]))).convert("RGB"))

    def close(self) -> None:
        os.close(self._to)  # the end of its pipe ends it
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            os.close(self._from)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._from, 1 << 16)
            assert part, "the browser has ended"
            self._read += part
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)
