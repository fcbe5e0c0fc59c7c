"""A real browser for tests: Chromium without a window, driven by its DevTools protocol.

`make test` unpacks one beside the environment; else the system's is taken.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Page", "find_chromium"]

_UNPACKED = Path(sys.prefix) / "browser"
_PATIENCE = 120  # seconds without a word
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe", "--window-size=1200,900", "--hide-scrollbars", "--no-zygote",
)  # fmt: skip


def find_chromium() -> str | None:
    """Find the program, or None."""
    unpacked = _UNPACKED / "chromium"
    return str(unpacked) if unpacked.exists() else shutil.which("chromium")


class Page:
    """One page in a browser of its own; a context manager.

    Attributes
    ----------
    messages : what the page wrote to the console, errors that nobody caught among it.
    requests : addresses that the page asked for.
    """

    def __init__(self, folder: Path) -> None:
        program = find_chromium()
        assert program
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._numbers = itertools.count(1)
        self._waiting: list[dict[str, Any]] = []
        self._unread = b""
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def connect() -> None:  # the protocol's pipes are the file descriptors 3 and 4
            read, write = os.dup(to_browser), os.dup(from_browser)
            os.dup2(read, 3)
            os.dup2(write, 4)

        libraries = f"{_UNPACKED / 'al2023' / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        fonts = folder / "fonts.conf"
        fonts.write_text(f"<fontconfig><dir>{_UNPACKED / 'fonts'}</dir></fontconfig>")
        own = {"LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": str(fonts)}
        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            preexec_fn=connect, close_fds=False, stderr=subprocess.DEVNULL,
            env={**os.environ, **(own if str(_UNPACKED) in program else {})},
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        self._call("Browser.close")
        self._process.wait(30)
        os.close(self._write)
        os.close(self._read)

    def open(self, address: str) -> None:
        self.requests.clear()
        self._call("Page.navigate", url=address)
        self._until(lambda event: event.get("method") == "Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Return the value of an expression."""
        found = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, x: float, y: float, dx: float, dy: float) -> None:
        steps = (("mousePressed", 0, 0), ("mouseMoved", dx, dy), ("mouseReleased", dx, dy))
        for kind, right, down in steps:
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=x + right, y=y + down, button="left",
                buttons=1, clickCount=1,
            )  # fmt: skip

    def wheel(self, x: float, y: float, delta: float) -> None:
        self._call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def key(self, name: str) -> None:
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38}
        code = codes.get(name, ord(name[0].upper()))
        self._call(
            "Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", key=name,
            text=text, windowsVirtualKeyCode=code, code=name,
        )  # fmt: skip
        self._call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        self._call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if method.split(".")[0] not in ("Target", "Browser"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == number)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read messages until one is wanted, events that came earlier included."""
        for i, message in enumerate(self._waiting):
            if wanted(message):
                return self._waiting.pop(i)
        while True:
            while b"\0" not in self._unread:
                assert select.select([self._read], [], [], _PATIENCE)[0], "the browser is silent"
                part = os.read(self._read, 1 << 16)
                assert part, "the browser has gone"
                self._unread += part
            line, self._unread = self._unread.split(b"\0", 1)
            message = json.loads(line)
            self._note(message)
            if wanted(message):
                return message
            self._waiting.append(message)

    def _note(self, message: dict[str, Any]) -> None:
        event, facts = message.get("method"), message.get("params", {})
        if event == "Runtime.consoleAPICalled":
            self.messages.append(str([argument.get("value") for argument in facts["args"]]))
        elif event == "Runtime.exceptionThrown":
            self.messages.append(str(facts["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.messages.append(facts["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
