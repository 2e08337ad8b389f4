"""HTTP servers on the loopback: one that takes messages, one of the files of a folder, and any other."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Quiet(BaseHTTPRequestHandler):
    """Writes no log."""

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


class QuietFiles(Quiet, SimpleHTTPRequestHandler):
    """The files of a folder."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # the default of 5 makes concurrent connections wait a second for their second SYN


@contextlib.contextmanager
def http_server(handler: Callable[..., BaseHTTPRequestHandler], host: str = "127.0.0.1") -> Iterator[str]:
    """The address, without a slash at its end, where the handler answers."""
    with _Server((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An address that takes messages, and what it was told."""
    heard: list[dict[str, str]] = []

    class Handler(Quiet):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    with http_server(Handler) as url:
        yield f"{url}/", heard


def serving_files(folder: Path) -> contextlib.AbstractContextManager[str]:
    """The address of a folder's files."""
    return http_server(functools.partial(QuietFiles, directory=str(folder)))
