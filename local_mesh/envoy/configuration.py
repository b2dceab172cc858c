"""Envoy's configuration out of small files: plain YAML with four tags.

`!include FILE` stands for the content of another file, named from the folder of the outermost one; a list
included as an item of a list adds its items. `!text [FILE, ...]` stands for what the files say, one after the
other. `!value NAME` stands for what is known only where Envoy runs: a port, an address, a limit that somebody
may change. `!refusals` turns a list of the edge's own refusals into Envoy's form, where each stands twice and
one of them in protobuf.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from local_mesh.envoy.refusals import mappers
from local_mesh.failure import Failure

ROOT = Path(__file__).resolve().parents[2]


def load(source: Path, values: Mapping[str, object]) -> dict[str, Any]:
    """The whole configuration. Raises Failure on a value that is unknown, missing or never asked for."""
    used: set[str] = set()
    loaded = _load(source, values, used)
    if unused := sorted(set(values) - used):
        raise Failure(f"{source.name} and what it includes never ask for: {', '.join(unused)}.")
    if not isinstance(loaded, dict):
        raise Failure(f"{source} is not a mapping.")
    return loaded


def render(source: Path, values: Mapping[str, object]) -> str:
    """The whole configuration as YAML."""
    return as_yaml(load(source, values))


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration as Envoy reads it; by the library in C if there is one, in a tenth of the time."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(config, Dumper=dumper, sort_keys=False, width=110)


def _load(source: Path, values: Mapping[str, object], used: set[str]) -> object:
    class Loader(yaml.SafeLoader):
        """Reads a file together with what it includes."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            node = super().compose_node(parent, index)
            return compose(node.value) if node is not None and node.tag == "!include" else node

        def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
            node = super().compose_sequence_node(anchor)
            items: list[yaml.Node] = []
            for item in node.value:
                # Only an included one spreads: what a file writes as a list in a list stays so.
                spreads = id(item) in included and isinstance(item, yaml.SequenceNode)
                items += item.value if spreads else [item]
            node.value = items
            return node

        def value(self, node: yaml.Node) -> object:
            if node.value not in values:
                raise Failure(f"{_place(node)}: there is no value {node.value!r} for it.")
            used.add(node.value)
            return values[node.value]

    def read(name: str) -> str:
        try:
            return (source.parent / name).read_text()
        except OSError as error:
            raise Failure(f"{source.name} includes {name}: {error.strerror}.") from None

    def compose(name: str) -> yaml.Node:
        file = source.parent / name
        loader = Loader(read(name))
        loader.name = str(file)
        node = loader.get_single_node()
        if node is None:
            raise Failure(f"{file} is empty.")
        included[id(node)] = node
        return node

    def refusals(loader: yaml.SafeLoader, node: yaml.Node) -> list[object]:
        assert isinstance(node, yaml.SequenceNode)
        return [mapper for one in loader.construct_sequence(node, deep=True) for mapper in mappers(**one)]

    def text(loader: yaml.SafeLoader, node: yaml.Node) -> str:
        assert isinstance(node, yaml.SequenceNode)
        return "".join(read(str(name)) for name in loader.construct_sequence(node))

    included: dict[int, yaml.Node] = {}  # by identity; holding them keeps the identities apart
    Loader.add_constructor("!value", Loader.value)
    Loader.add_constructor("!refusals", refusals)
    Loader.add_constructor("!text", text)
    try:
        return Loader("").construct_document(compose(source.name))
    except (yaml.YAMLError, ValueError) as error:
        raise Failure(f"{source.name} cannot be read: {error}") from None


def _place(node: yaml.Node) -> str:
    return f"{node.start_mark.name}, line {node.start_mark.line + 1}"


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
