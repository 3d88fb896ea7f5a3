"""A server for the files of a site, on this machine."""
import errno
import functools
import json
import os
import shutil
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .site import HEADERS, MANIFEST

__all__ = ["SiteServer"]

TYPES = {  # not the system's table, in which JavaScript may be anything
    ".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8", ".json": "application/json", ".md": "text/markdown; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".svg": "image/svg+xml", ".wasm": "application/wasm"}


class SiteServer(ThreadingHTTPServer):
    """Serves the files that a site's manifest names, and nothing else.

    Args:
        folder: What `write_site` writes, before the first request at the latest.
        host: The address to listen at.
        port: The port; 0 for any that is free.

    Attributes:
        url: Where the page is.

    Raises:
        OSError: The port is taken, or the address isn't this machine's.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it lets two servers have one port

    def __init__(self, folder: str | os.PathLike[str], host: str = "127.0.0.1", port: int = 8000):
        self.folder = Path(folder)
        try:
            super().__init__((host, port), SiteHandler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"port {port} of {host} is taken: choose another one with --port, 0 for any") from error
            raise OSError(f"can't listen at port {port} of {host}: {error.strerror or error}") from error
        except OverflowError as error:
            raise ValueError(f"a port is a number from 0 to 65535, got {port}") from error
        shown = "127.0.0.1" if host in ("", "0.0.0.0") else host  # pages of other addresses get no threads, no camera
        self.url = f"http://{shown}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the browser went away
            super().handle_error(request, client_address)

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        """What is served, by its path."""
        names = json.loads((self.folder / MANIFEST).read_text())["files"]
        return {"/": self.folder / "index.html", **{f"/{name}": self.folder / name for name in names}}


class SiteHandler(BaseHTTPRequestHandler):
    """GET and HEAD of a `SiteServer`'s files."""

    server: Any  # a `SiteServer`: the base class says BaseServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.server.files.get(unquote(urlsplit(self.path).path))
        try:
            file = open(path, "rb") if path else None
        except OSError:
            file = None
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", TYPES.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.send_header("Cache-Control", "no-store")  # the next demo at this port has other files
            self.send_header("X-Content-Type-Options", "nosniff")
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                try:
                    shutil.copyfileobj(file, self.wfile)
                except ConnectionError:  # the browser went away
                    pass

    def log_message(self, format: str, *args: Any) -> None:
        pass
