"""A server for the files of a site, on this machine."""
import errno
import functools
import os
import socket
import sys
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .site import HEADERS

__all__ = ["SiteServer"]


class SiteServer(ThreadingHTTPServer):
    """Serves the files of a folder.

    Args:
        folder: What `write_site` writes.
        host: The address to listen at, IPv4 or IPv6, or a name.
        port: The port; 0 for any that is free.

    Attributes:
        url: Where the page is.

    Raises:
        OSError: The port is taken, or the address isn't this machine's.
        ValueError: No port.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it lets two servers have one port

    def __init__(self, folder: str | os.PathLike[str], host: str = "127.0.0.1", port: int = 8000):
        if not 0 <= port <= 65535:
            raise ValueError(f"a port is a number from 0 to 65535, got {port}")
        host = host or "0.0.0.0"
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), functools.partial(SiteHandler, directory=os.fspath(folder)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"port {port} of {host} is taken: choose another one with --port, 0 for any") from error
            raise OSError(f"can't listen at port {port} of {host}: {error.strerror or error}") from error
        # browsers give threads and the camera to pages of this machine, not to those of 0.0.0.0
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the browser went away
            super().handle_error(request, client_address)


class SiteHandler(SimpleHTTPRequestHandler):
    """GET and HEAD of files, with the headers that threads need."""

    extensions_map = {  # not the system's table, in which JavaScript may be anything
        **SimpleHTTPRequestHandler.extensions_map, ".css": "text/css", ".html": "text/html", ".js": "text/javascript",
        ".json": "application/json", ".mjs": "text/javascript", ".svg": "image/svg+xml", ".wasm": "application/wasm"}

    def end_headers(self) -> None:
        for name, value in {**HEADERS, "Cache-Control": "no-store"}.items():  # the next demo here has other files
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        pass
