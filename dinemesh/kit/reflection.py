"""Server reflection, v1 and v1alpha, for every contract of Dinemesh and for health.

Each service answers for all contracts, since an edge can send reflection to only one of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

import dinemesh

_V1 = "grpc.reflection.v1.ServerReflection"


def contract_services() -> list[str]:
    """The full names of all services in the generated contracts; imports every one of them."""
    found: set[str] = set()
    for module in pkgutil.walk_packages(dinemesh.__path__, "dinemesh."):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(module.name).DESCRIPTOR
            found.update(service.full_name for service in descriptor.services_by_name.values())
    return sorted(found)


class _Contracts:
    """The pool of all contracts, for the servicer. It also finds the file of an RPC, by which ghz asks."""

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, name: str) -> Any:
        try:
            return self._pool.FindFileContainingSymbol(name)
        except KeyError:
            return self._pool.FindMethodByName(name).containing_service.file


def add_to(server: grpc.aio.Server) -> None:
    """Serves both versions with one servicer; the library has v1alpha only, and grpcurl asks for v1 first."""
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    names = [*contract_services(), health, reflection.SERVICE_NAME]
    make: Any = ReflectionServicer
    servicer = make(service_names=names, pool=_Contracts())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    # The messages of v1 are those of v1alpha under another name.
    for name in (_V1, reflection.SERVICE_NAME):
        handler = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        server.add_generic_rpc_handlers((handler,))
