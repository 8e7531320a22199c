"""Control a headless Chromium by the DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
from websockets.sync.client import ClientConnection, connect

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """A tab. `console` has its errors and exceptions, `requested` the URLs that it requested."""

    def __init__(self, socket: ClientConnection):
        self._socket, self._number = socket, 0
        self.console: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, record the events that arrive, and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            self._record(message)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)
        self.wait(lambda: self.value("document.readyState") == "complete")

    def value(self, script: str) -> Any:
        """Evaluate an expression in the page and return its value."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def wait(self, condition: Callable[[], object], timeout_s: float = 30) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, (self.console, self.value("document.body?.innerText"))
            time.sleep(0.1)

    def screenshot(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        import base64

        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _record(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.console.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.console.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.console.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """Run a browser with one tab for the duration of the block."""
    assert BINARY is not None
    with tempfile.TemporaryDirectory(prefix="fw-chromium-", ignore_cleanup_errors=True) as profile:
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")
        process = subprocess.Popen(
            [BINARY, *options, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
        )
        try:
            port = Path(profile) / "DevToolsActivePort"
            until = time.monotonic() + 60
            while not port.exists() or not port.read_text().strip():
                assert time.monotonic() < until, "chromium does not start"
                time.sleep(0.1)
            tabs = requests.get(f"http://127.0.0.1:{port.read_text().split()[0]}/json", timeout=30).json()
            (tab,) = [tab for tab in tabs if tab["type"] == "page"]
            with connect(tab["webSocketDebuggerUrl"], max_size=None, close_timeout=1) as socket:
                yield Page(socket)
        finally:
            process.kill()
            process.wait()
