"""Every RPC of the four services, read from the contracts, and how it is called over JSON and over gRPC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
from google.api import annotations_pb2
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message

from dinemesh.deposit.v1 import deposit_service_pb2
from dinemesh.history.v1 import history_service_pb2
from dinemesh.reservation.v1 import reservation_service_pb2
from dinemesh.restaurant.v1 import restaurant_service_pb2

CONTRACTS: dict[str, Any] = {
    "reservation": reservation_service_pb2,
    "deposit": deposit_service_pb2,
    "restaurant": restaurant_service_pb2,
    "history": history_service_pb2,
}
_HTTP: Any = annotations_pb2.http  # its stub does not say that it is an extension

HTTP_STATUS = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""The mapping that google.rpc.Code documents."""


@dataclass(frozen=True)
class HttpCall:
    """An RPC in its HTTP form. `body` is None where there is none."""

    verb: str
    path: str
    query: dict[str, Any]
    body: dict[str, Any] | None


@dataclass(frozen=True)
class Rpc:
    """One method of a service. `verb` and `template` are "" where it has no HTTP form."""

    service: str
    name: str
    path: str
    verb: str
    template: str
    has_body: bool
    streams: bool
    request: type[Message]
    response: type[Message]

    def over_http(self, request: Message) -> HttpCall:
        """The request as path, query and body."""
        fields = json_format.MessageToDict(request, preserving_proto_field_name=True)
        path = re.sub(r"{(\w+)}", lambda part: quote(str(fields.pop(part[1], "-")), safe=""), self.template)
        return (
            HttpCall(self.verb, path, {}, fields)
            if self.has_body
            else HttpCall(self.verb, path, fields, None)
        )

    async def over_grpc(
        self,
        channel: grpc.aio.Channel,
        request: Message,
        metadata: tuple[tuple[str, str], ...] = (),
        timeout: float = 5.0,
    ) -> Message:
        """Calls it; of a stream, the first message. Raises what grpc.aio raises."""
        kind = channel.unary_stream if self.streams else channel.unary_unary
        method: Any = kind(
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )
        call = method(request, metadata=metadata, timeout=timeout)
        if not self.streams:
            answer: Message = await call
            return answer
        try:
            first = await call.read()
            assert isinstance(first, Message), f"{self.name} streams nothing"
            return first
        finally:
            call.cancel()


def _rpcs() -> dict[str, Rpc]:
    found: dict[str, Rpc] = {}
    for service, contract in CONTRACTS.items():
        for described in contract.DESCRIPTOR.services_by_name.values():
            for method in described.methods:
                rule = method.GetOptions().Extensions[_HTTP]
                pattern = rule.WhichOneof("pattern") or ""
                assert not rule.additional_bindings, "a second HTTP form needs a second row"
                found[method.name] = Rpc(
                    service=service,
                    name=method.name,
                    path=f"/{described.full_name}/{method.name}",
                    verb=pattern.upper(),
                    template=getattr(rule, pattern) if pattern else "",
                    has_body=rule.body == "*",
                    streams=method.server_streaming,
                    request=message_factory.GetMessageClass(method.input_type),
                    response=message_factory.GetMessageClass(method.output_type),
                )
    return found


RPCS = _rpcs()
"""By name; the names of the four services' methods differ."""
