"""Look at the book in a browser: a screenshot of each kind of page, and whether everything is where it belongs.

    python book/look.py build/book OUT       needs chromium and chromedriver

Each page is opened as wide as a desk (1280 pixels) and as a phone (390), light and dark. In the page it is checked
(look.js) that nothing but tables, code and drawings scrolls sideways, that no text sticks out of its box, and that no
text of a drawing sticks out of the drawing. Exit code 1, and a line for each, where something does."""

import base64
import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# One page of each kind.
PAGES = {
    "index": "book/index.html",
    "chapter": "refimpl/learn/chapters/ch06_prefix_cache.html",
    "lab": "refimpl/learn/labs/e_bug_hunt.html",
    "reading": "book/reading/1_formulas.html",
    "api": "book/api/python.html",
    "kernels": "kernels/README.html",
    "bugs": "refimpl/oracle/bugs/README.html",
    "readme": "README.html",
    "source": "source/refimpl/lora.py.html",
}
WIDTHS = (1280, 390)  # pixels
SCHEMES = ("light", "dark")
TALLEST = 5000  # pixels of a screenshot; larger files show more of long pages

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

LOOK = Path(__file__).with_suffix(".js").read_text("utf-8")


class Browser:
    """A session of chromedriver, spoken to in the WebDriver protocol."""

    def __init__(self, address: str, profile: str) -> None:
        self.address = address
        options = {"goog:chromeOptions": {"args": [*FLAGS, f"--user-data-dir={profile}"]}}
        session = self._send("session", {"capabilities": {"alwaysMatch": options}})
        self.address = f"{address}/session/{session['sessionId']}"

    def _send(self, path: str, data: dict[str, Any]) -> Any:
        body = json.dumps(data).encode()
        request = urllib.request.Request(f"{self.address}/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self._send("goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url: str, width: int, scheme: str) -> None:
        """Open a page in a window of this width, for a reader who prefers this scheme."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])
        self._send("url", {"url": url})

    def look(self) -> list[str]:
        """Return a line for everything that is not where it belongs."""
        lines: list[str] = self._send("execute/sync", {"script": LOOK, "args": []})
        return lines

    def screenshot(self, file: Path, width: int) -> None:
        """Write the page, from its top, as a PNG."""
        height = self._send("execute/sync", {"script": "return document.documentElement.scrollHeight", "args": []})
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST), "scale": 1}
        image = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(image["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Start chromedriver with a profile of its own; both end with the block."""
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryFile("w+") as log:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert driver.stdout is not None
            port = next(line.split()[-1].rstrip(".") for line in driver.stdout if "started successfully" in line)
            yield Browser(f"http://127.0.0.1:{port}", profile)
        finally:
            driver.terminate()
            driver.wait()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine while the block runs; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def look_at_all(book: Path, out: Path) -> list[str]:
    """Write a screenshot of every kind of page; return a line for everything that is not where it belongs."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"{page}: is not in {book}" for page in PAGES.values() if not (book / page).exists()]
    with served(book) as address, browser() as window:
        for name, page in PAGES.items():
            for width in WIDTHS if (book / page).exists() else ():
                for scheme in SCHEMES:
                    window.open(f"{address}/{page}", width, scheme)
                    lines += [f"{page} at {width}, {scheme}: {line}" for line in window.look()]
                    window.screenshot(out / f"{name}-{width}-{scheme}.png", width)
    return lines


def main() -> int:
    """Return 0 if everything is where it belongs."""
    if len(sys.argv) != 3 or not shutil.which("chromedriver"):
        print(__doc__, file=sys.stderr)
        return 2
    lines = look_at_all(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(dict.fromkeys(lines)) or f"{len(PAGES)} pages, {len(WIDTHS)} widths, light and dark: all in place")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
