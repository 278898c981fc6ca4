"""JSON over HTTP with every wait bounded, on http.client alone.

Of the standard library's two clients http.client is the one that sends the request and does no more: it follows no
redirect (which would carry the key to another host), uses no proxy, and lets every wait be bounded. What a library
adds (pools, HTTP/2, streams) is not needed: a request has a connection of its own, so that a broken one spoils
nothing, and a response is read whole.

The key comes from the environment and goes into one header. Servers like to quote what they were sent: nothing that
leaves here, be it an error or a raw response, still has the key in it.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from ..interface import EngineError

MAX_BODY = 2**30  # bytes of a response: all of it is in memory at once
RAW_TEXT = 20_000  # characters kept of one that is no JSON
BACKOFF = 0.2  # seconds before the first repetition; doubled for each one after
REPEATED = (429, 500, 502, 503, 504)  # statuses that may be different next time


class Unreachable(EngineError):
    """Nothing came back: nobody listens there, or not in time."""


class BadResponse(EngineError):
    """Something came back that is no valid response. It is kept in `raw`, as JSON where it was JSON."""

    def __init__(self, message: str, raw: Any = None) -> None:
        super().__init__(message)
        self.raw = raw


class Refused(BadResponse):
    """The server responded with an error of its own."""

    def __init__(self, message: str, raw: Any, status: int) -> None:
        super().__init__(message, raw)
        self.status = status


class _Broken(Exception):
    """The connection ended before the response did. `body` is what had come."""

    def __init__(self, reason: str, body: bytes) -> None:
        super().__init__(reason)
        self.body = body


@dataclass
class Client:
    """A client of one server. Several threads may use it at once: nothing is shared between requests."""

    url: str  # http://host:port, with a path if the server lives under one
    key: str = field(default="", repr=False)
    timeout: float = 120.0  # seconds for one try, from connecting to the last byte
    retries: int = 2  # after the first try

    def __post_init__(self) -> None:
        if "@" in self.url or "?" in self.url:  # not repeated: it may be a secret
            raise EngineError(
                "url: no name, password or question goes into it; a key goes into an environment variable"
            )
        try:
            parts = urlsplit(self.url)
            self.host, self.port = parts.hostname or "", parts.port
        except ValueError:
            raise EngineError(f"url: {self.url!r} is not of the form http://host:port") from None
        if parts.scheme not in ("http", "https") or not self.host or parts.fragment:
            raise EngineError(f"url: {self.url!r} is not of the form http://host:port")
        self.secure, self.prefix = parts.scheme == "https", parts.path.rstrip("/").removesuffix("/v1")
        if not (self.key.isascii() and self.key.isprintable()) or self.key != self.key.strip():
            raise EngineError("the key has characters that no HTTP header can carry (a line break at its end, perhaps)")

    def get(self, path: str, text: bool = False) -> Any:
        """Return the JSON at the path, or its text."""
        return self._request("GET", path, None, text)

    def post(self, path: str, body: Any, text: bool = False) -> Any:
        """Send JSON, and return the JSON that comes back, or the text."""
        return self._request("POST", path, json.dumps(body).encode(), text)

    def clean(self, value: Any) -> Any:
        """Return the same value without the key, however deep it sits."""
        if isinstance(value, str):
            return value.replace(self.key, "***") if self.key else value
        if isinstance(value, dict):
            return {self.clean(name): self.clean(item) for name, item in value.items()}
        return [self.clean(item) for item in value] if isinstance(value, list) else value

    def _request(self, method: str, path: str, payload: bytes | None, text: bool) -> Any:
        """Try once, and again where that may help: a greedy response is the same whenever it is computed."""
        where = f"{method} {path} at {self.url}"
        for repetition in range(self.retries + 1):
            if repetition:
                time.sleep(BACKOFF * 2 ** (repetition - 1))
            last = repetition == self.retries
            try:
                status, body = self._once(method, path, payload)
            except TimeoutError:  # a slow server gets no faster by a second request
                raise Unreachable(f"{where}: no whole answer within {self.timeout:g} s") from None
            except (ConnectionRefusedError, socket.gaierror) as error:
                if last or isinstance(error, socket.gaierror):
                    raise Unreachable(f"{where}: nobody answers there ({error.strerror})") from None
            except _Broken as error:
                if last:
                    what = f"{where}: the connection broke ({_short(self.clean(str(error)))}), {self._tries()}"
                    raise BadResponse(what, self._text(error.body)) from None
            except (OSError, UnicodeError) as error:  # TLS, no route, a name that can be no host's, ...
                raise Unreachable(f"{where}: {self.clean(str(error))}") from None
            else:
                if last or status not in REPEATED:
                    return self._parsed(where, status, body, text)
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, payload: bytes | None) -> tuple[int, bytes]:
        """Return the status and the whole body of one try."""
        deadline = time.monotonic() + self.timeout
        connection = (HTTPSConnection if self.secure else HTTPConnection)(self.host, self.port, timeout=self.timeout)
        headers = {"Accept": "application/json"}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.connect()
            with _cut(connection.sock, deadline - time.monotonic()) as late:
                body = bytearray()
                try:
                    connection.request(method, self.prefix + path, payload, headers)
                    response = connection.getresponse()
                    while (piece := response.read(2**16)) and len(body) <= MAX_BODY:
                        body += piece
                    if not piece and response.length:  # read() does not mind
                        raise ConnectionError(f"closed with {response.length} bytes to come")
                except (OSError, HTTPException) as error:
                    # The socket's own timeout may come before the timer: on a busy machine that thread waits its turn.
                    if late.is_set() or isinstance(error, TimeoutError):
                        raise TimeoutError from None
                    raise _Broken(f"{type(error).__name__} {error}", bytes(body)) from None
                if late.is_set():  # a body of unknown length ends without an error when it is cut off
                    raise TimeoutError
            if len(body) > MAX_BODY:
                what = f"{method} {path} at {self.url}: more than {MAX_BODY} bytes; top-k asks for less"
                raise BadResponse(what, self._text(bytes(body[:RAW_TEXT])))
            return response.status, bytes(body)
        finally:
            connection.close()

    def _parsed(self, where: str, status: int, body: bytes, text: bool) -> Any:
        if text and 200 <= status < 300:
            return self.clean(body.decode("utf-8", "replace"))
        try:
            value = json.loads(body)  # with NaN and Infinity, which Python's own servers write
        except (ValueError, RecursionError):
            value = self._text(body)
            if 200 <= status < 300:
                raise BadResponse(f"{where}: not JSON: {_short(value)}", value) from None
        if not 200 <= status < 300:
            value = self.clean(value)
            tries = f", {self._tries()}" if status in REPEATED else ""
            raise Refused(f"{where}: HTTP {status}{tries}: {_short(_message(value))}", value, status)
        return value

    def _text(self, body: bytes) -> str:
        """Return what is kept of a response that is no JSON."""
        return self.clean(body.decode("utf-8", "replace"))[:RAW_TEXT]

    def _tries(self) -> str:
        return f"{self.retries + 1} times" if self.retries else "once"


@contextmanager
def _cut(wire: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Shut the connection down when the time is up: a socket's own timeout begins anew with every byte that drips."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            socket.socket.shutdown(wire, socket.SHUT_RDWR)  # the wire itself, below TLS

    timer = threading.Timer(max(seconds, 0), cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _message(value: Any) -> str:
    """The text of an error: OpenAI's {"error": {"message"}}, FastAPI's {"detail"}, or all of it."""
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    """The text in one line of 200 characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:200] + " ..."
