"""Small web servers on loopback for tests: good ones, and ones that are bad in a way of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What a server serves, and how.

    Attributes:
        files: content by path; may be changed at any time.
        ranges: whether range requests are answered as such.
        requests: ``(path, Range header)`` of every request, in order.
        refuse: statuses to answer the next requests with; -1 cuts the connection after half the answer, -2 says
            nothing at all until the server is stopped.
        secret: Authorization header that is demanded; empty for none.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.marks = True
        self.requests: list[tuple[str, str]] = []
        self.refuse: list[int] = []
        self.secret = ""
        self.redirects: dict[str, str] = {}
        self.url = ""
        self.stopped = threading.Event()


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range") or ""
            site.requests.append((self.path, wanted))
            path = self.path.partition("?")[0]
            trouble = site.refuse.pop(0) if site.refuse else 0
            if trouble == -2:
                site.stopped.wait(30)
                self.close_connection = True
            elif trouble > 0:
                self.answer(trouble, b"")
            elif path in site.redirects:
                self.answer(302, b"", Location=site.redirects[path])
            elif site.secret and self.headers.get("Authorization") != site.secret:
                self.answer(401, b"")
            elif path not in site.files:
                self.answer(404, b"")
            else:
                self.serve(site.files[path], wanted, cut=trouble == -1)

        def serve(self, content: bytes, wanted: str, *, cut: bool) -> None:
            facts = {"ETag": f'"{hash(content)}"'} if site.marks else {}
            if not site.ranges or not wanted:
                self.answer(200, content, cut=cut, **facts)
                return
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            if first >= len(content):
                self.answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
                return
            piece = content[first : last + 1]
            facts["Content-Range"] = f"bytes {first}-{first + len(piece) - 1}/{len(content)}"
            self.answer(206, piece, cut=cut, **facts)

        def answer(self, status: int, body: bytes, *, cut: bool = False, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def log_message(self, *_told: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        site.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextmanager
def dripping(seconds_per_byte: float) -> Iterator[str]:
    """A server that never falls silent and never comes to an end."""
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-999999/1000000")
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            try:
                while not done.wait(seconds_per_byte):
                    self.wfile.write(b"x")
            except OSError:
                pass

        def log_message(self, *_told: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/endless"
    finally:
        done.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
