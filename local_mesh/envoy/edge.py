"""What the edge is told."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from local_mesh.envoy import wheels
from local_mesh.envoy.configuration import ROOT, discovery, endpoint, render
from local_mesh.envoy.contracts import descriptor_set

EDGE = ROOT / "envoy" / "edge.yaml"
"""The outermost file of the edge."""


@dataclass(frozen=True, kw_only=True)
class EdgeValues:
    """What the edge has to be told, and what it may be told. Each is a `!value` of the same name."""

    port: int
    """Where HTTP/JSON, gRPC-Web and gRPC are served."""
    admin_port: int
    """Where Envoy's own pages are; on 127.0.0.1 whatever `host` is, since they can stop it."""
    reservation: Sequence[str]
    """Addresses (host:port) of the instances of each service. A name is looked up in the DNS, and stands for
    all addresses that it has."""
    deposit: Sequence[str]
    restaurant: Sequence[str]
    history: Sequence[str]
    jwks_file: Path
    """Public keys that tokens are checked against; a file put in its place takes effect at once."""
    descriptor_file: Path
    """Where `write` puts the contracts that JSON is translated by."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    allowed_origins: Sequence[str] = (r"http://localhost(:\d+)?", r"http://127\.0\.0\.1(:\d+)?")
    """Regular expressions of the whole origins whose pages may call from a browser."""
    most_connections: int = 10_000
    """Connections of all clients together; one more is closed at once."""
    most_heap_bytes: int = 1 << 30
    """Memory of Envoy. Close to it, streams that keep much of it are reset, and then calls are refused until
    there is less."""
    trusted_hops: int = 0
    """Proxies of one's own in front of the edge, one behind the other, each of which adds the address of its
    client to x-forwarded-for. With 0 the address of the connection counts. Too many, and clients choose
    theirs."""
    address_rate_per_second: int = 100
    """Requests per second from one address, whatever they ask for."""
    address_rate_burst: int = 200
    """How many of them may come at once after a quiet time."""
    document_rate_per_second: int = 2
    """How often each document of the API is handed out, to everybody together."""
    document_rate_burst: int = 20
    """How often at once after a quiet time."""
    rate_per_second: int = 500
    """Calls per second of everybody together, in the long run."""
    rate_burst: int = 1000
    """How many calls of everybody together may come at once after a quiet time."""
    customer_rate_per_second: int = 20
    """Calls per second of one person, by the verified `sub` of the token, in the long run."""
    customer_rate_burst: int = 40
    """How many calls of one person may come at once after a quiet time."""
    default_deadline_seconds: float = 10
    """What a unary call has if its client asks for nothing."""
    longest_deadline_seconds: float = 30
    """What a client may ask for at most."""
    stream_idle_seconds: float = 40
    """Silence after which a watch counts as broken: two heartbeats (15 s each) and some."""
    longest_stream_seconds: float = 3660
    """A watch's last resort; the services end each of theirs properly after 3600 s."""
    reflection_idle_seconds: float = 10
    """Silence after which a tool that asks for the contracts is taken to have no more questions."""
    longest_reflection_seconds: float = 60
    """Of such a conversation, however lively."""

    def as_mapping(self) -> dict[str, object]:
        """By the names that the files use."""
        plain: dict[str, object] = {one.name: getattr(self, one.name) for one in fields(self)}
        shaped: dict[str, object] = {
            "jwks_file": str(self.jwks_file),
            "jwks_folder": str(self.jwks_file.parent),
            "keys_socket": f"@dinemesh-edge-{self.admin_port}",
            "descriptor_file": str(self.descriptor_file),
            "allowed_origins": [{"safe_regex": {"regex": one}} for one in self.allowed_origins],
        }
        for name in (one for one in plain if one.endswith("_seconds")):
            shaped[name] = f"{plain[name]}s"
        addresses = {
            name: getattr(self, name) for name in ("reservation", "deposit", "restaurant", "history")
        }
        for name in addresses:
            shaped[name] = [endpoint(address) for address in addresses[name]]
        shaped["discovery"] = discovery(itertools.chain(*addresses.values()))
        return plain | shaped | documents()


def documents() -> dict[str, str]:
    """The files that the edge answers with by itself, by the names of their `!value`s."""
    ours = ROOT / "envoy" / "documents"
    theirs = wheels.found("swagger-ui-py", "swagger_ui/static")
    files = {
        "openapi_file": ROOT / "protos" / "openapi.json",
        "start_page_file": ours / "start.html",
        "reference_page_file": ours / "reference.html",
        "reference_script_file": ours / "reference.js",
        "swagger_ui_script_file": theirs / "swagger-ui-bundle.js",
        "swagger_ui_style_file": theirs / "swagger-ui.css",
    }
    return {name: str(file) for name, file in files.items()}


def write(values: EdgeValues, file: Path, source: Path = EDGE) -> Path:
    """Writes the edge's configuration into `file`, and the contracts beside it. Returns `file`."""
    values.descriptor_file.write_bytes(descriptor_set())
    file.write_text(render(source, values.as_mapping()))
    return file
