"""A small HTTP server on this machine that serves files well or badly."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from waiting import PATIENCE


@dataclass
class Served:
    """A file, and how badly it is served."""

    content: bytes
    ranges: bool = True
    """Whether partial requests are answered."""
    break_after: list[int] = field(default_factory=list)
    """After how many bytes of the body each of the first answers breaks off."""
    statuses: list[int] = field(default_factory=list)
    """What the first requests are answered with, instead of the file."""
    status: int = 200
    """What all further requests are answered with."""
    declared: int | None = None
    """A wrong Content-Length."""
    tag: str | None = '"a"'
    kind: str = "application/octet-stream"
    shift: int = 0
    """How far behind the asked place a partial answer starts."""
    pause: threading.Event | None = None
    """Set when the first bytes are out; the answer then hangs."""
    requests: list[dict[str, str]] = field(default_factory=list)
    """Headers of all requests."""


@contextmanager
def serving(files: dict[str, Served]) -> Iterator[str]:
    """Serves files by path on the loopback interface; gives the address without a path."""
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments) -> None:
            del arguments

        def do_GET(self) -> None:
            served = files[self.path.partition("?")[0]]
            served.requests.append(dict(self.headers))
            self.close_connection = True
            status = served.statuses.pop(0) if served.statuses else served.status
            if status != 200:
                self.answer(status, b"", {"Retry-After": "0"})
                return
            start, headers = 0, {"Content-Type": served.kind}
            if served.tag:
                headers["ETag"] = served.tag
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if served.ranges and asked and self.headers.get("If-Range") in (None, served.tag):
                start = int(asked[1])
                if start >= len(served.content):
                    self.answer(416, b"", {"Content-Range": f"bytes */{len(served.content)}"})
                    return
                start += served.shift
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(served.content) - 1}/{len(served.content)}"
            body = served.content[start:]
            broken = body[: served.break_after.pop(0)] if served.break_after else body
            headers["Content-Length"] = str(len(body) if served.declared is None else served.declared)
            self.answer(status, broken, headers)
            if served.pause:
                served.pause.set()
                end.wait(PATIENCE)

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        end.set()
        server.shutdown()
        server.server_close()
        thread.join()
