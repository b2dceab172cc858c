"""The contracts, as Envoy needs them to translate JSON."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

import dinemesh

# No contract imports it, but it travels inside every refusal: a transcoder renders only types that it knows.
_DETAILS = "google.rpc.error_details_pb2"


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
