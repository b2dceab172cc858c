"""Serves the example page, which books through the edge from an origin of its own."""

from __future__ import annotations

import errno
import functools
import http.server
import urllib.error
import urllib.parse
import urllib.request

from local_mesh import machine
from local_mesh.commands import Mesh, say
from local_mesh.failure import Failure
from local_mesh.settings import ROOT

FOLDER = ROOT / "examples" / "browser"
SIGN = "client.js"
"""Of what the page consists; whoever serves it as it is here serves our page."""
HOST = "127.0.0.1"


def serve(mesh: Mesh) -> None:
    """Until Ctrl-C. Where the page is served already, that is said, and nothing more is to be done."""
    port = mesh.settings.page_port
    edge = f"http://{mesh.address('edge')}"
    at = f"http://{HOST}:{port}/#{urllib.parse.urlencode({'edge': edge})}"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(FOLDER))
    try:
        server = http.server.ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise Failure(
                f"The page cannot be served at port {port} (PAGE_PORT): {error.strerror}."
            ) from None
        by = machine.holder(port) or "a process of another user"
        if not _is_served(port):
            raise Failure(
                f"{port} (PAGE_PORT) is held by {by}\n"
                "End that process, or choose another port, like: make page PAGE_PORT=<port>"
            ) from None
        say(f"The page is served already, by {by}: {at}")
        return
    with server:
        say(f"The page is at {at} (until Ctrl-C). It asks for a token: make token SUB=alice ROLE=customer")
        server.serve_forever()


def _is_served(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/{SIGN}", timeout=5) as answer:
            return bool(answer.read() == (FOLDER / SIGN).read_bytes())
    except (OSError, urllib.error.URLError, ValueError):
        return False
