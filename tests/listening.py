"""HTTP addresses: one that takes messages, and one of the files of a folder."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An address that takes messages, and what it was told."""
    heard: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with _running(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, heard


@contextlib.contextmanager
def serving_files(folder: Path) -> Iterator[str]:
    """An address of a folder's files."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    handler = functools.partial(Handler, directory=str(folder))
    with _running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        yield url


@contextlib.contextmanager
def _running(server: HTTPServer) -> Iterator[str]:
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
