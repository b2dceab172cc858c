"""Server reflection, v1 and v1alpha, for the contracts of Dinemesh and for health.

An edge can send reflection to only one of the services. Each therefore describes what it serves itself, and
of the other contracts the RPCs that have an HTTP form, which are the ones that the edge lets through.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterable
from typing import Any

import grpc
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

import dinemesh

_V1 = "grpc.reflection.v1.ServerReflection"
_HTTP: Any = annotations_pb2.http  # its stub does not say that it is an extension
# Tools ask for the types inside a refusal too, and no contract imports them.
_ALWAYS = (
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
    status_pb2.DESCRIPTOR,
    error_details_pb2.DESCRIPTOR,
)


class _Contracts:
    """A pool of the contracts, for the servicer. It also finds the file of an RPC, by which ghz asks.

    `served` names the services that are described in full. Of the others the RPCs without an HTTP form are
    left out, and all of them if `others` is not wanted.
    """

    def __init__(self, served: Collection[str], *, others: bool) -> None:
        self._pool: Any = descriptor_pool.DescriptorPool()
        self._served = served
        self._others = others
        self._known: set[str] = set()
        self.services: list[str] = []
        for file in (*_contract_files(), *_ALWAYS):
            self._learn(file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, name: str) -> Any:
        try:
            return self._pool.FindFileContainingSymbol(name)
        except KeyError:
            return self._pool.FindMethodByName(name).containing_service.file

    def _learn(self, file: FileDescriptor) -> None:
        if file.name in self._known:
            return
        self._known.add(file.name)
        for imported in file.dependencies:
            self._learn(imported)
        described = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(described)
        _name_in_json(described.message_type, file.message_types_by_name.values())
        if file.package.startswith("dinemesh."):
            self._leave_out(described)
        self._pool.AddSerializedFile(described.SerializeToString())

    def _leave_out(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        for service in list(file.service):
            name = f"{file.package}.{service.name}"
            if name not in self._served:
                kept = [one for one in service.method if self._others and one.options.HasExtension(_HTTP)]
                del service.method[:]
                service.method.extend(kept)
            if service.method:
                self.services.append(name)
            else:
                file.service.remove(service)


def _contract_files() -> list[FileDescriptor]:
    """The files of all generated contracts; imports every one of them."""
    modules = sorted(module.name for module in pkgutil.walk_packages(dinemesh.__path__, "dinemesh."))
    return [importlib.import_module(name).DESCRIPTOR for name in modules if name.endswith("_pb2")]


def _name_in_json(
    messages: Iterable[descriptor_pb2.DescriptorProto], descriptors: Iterable[Descriptor]
) -> None:
    """Gives each field its `json_name`: protoc leaves it out of Python code, and tools print by it."""
    by_name = {descriptor.name: descriptor for descriptor in descriptors}
    for message in messages:
        descriptor = by_name[message.name]
        for field in message.field:
            field.json_name = descriptor.fields_by_name[field.name].json_name
        _name_in_json(message.nested_type, descriptor.nested_types)


def add_to(server: grpc.aio.Server, served: Collection[str], *, others: bool = True) -> None:
    """Serves both versions with one servicer; the library has v1alpha only, and grpcurl asks for v1 first.

    `served` has the full names of the server's own services; `others`: describe the edge's other ones too.
    """
    contracts = _Contracts(served, others=others)
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    names = [*contracts.services, health, reflection.SERVICE_NAME]
    make: Any = ReflectionServicer
    servicer = make(service_names=names, pool=contracts)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    # The messages of v1 are those of v1alpha under another name.
    for name in (_V1, reflection.SERVICE_NAME):
        handler = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        server.add_generic_rpc_handlers((handler,))
