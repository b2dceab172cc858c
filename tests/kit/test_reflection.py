"""Both versions of reflection know every contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from tests.kit.serving import serving

PACKAGES = ("reservation", "deposit", "restaurant", "history")


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_all_services_without_a_token(
    tmp_path: Path, version: str
) -> None:
    wanted = {f"dinemesh.{name}.v1.{name.capitalize()}Service" for name in PACKAGES} | {
        "grpc.health.v1.Health"
    }
    async with serving(tmp_path) as server:
        ask: Any = server.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=pb.ServerReflectionRequest.SerializeToString,
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )
        questions = [
            pb.ServerReflectionRequest(list_services=""),
            *(pb.ServerReflectionRequest(file_containing_symbol=name) for name in sorted(wanted)),
        ]
        answers = [answer async for answer in ask(iter(questions), timeout=10)]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert wanted <= listed
    for name, answer in zip(sorted(wanted), answers[1:], strict=True):
        files = [
            FileDescriptorProto.FromString(raw)
            for raw in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert any(f"{file.package}.{service.name}" == name for file in files for service in file.service)


async def test_an_rpc_is_found_by_its_own_name_and_one_that_does_not_exist_is_not(tmp_path: Path) -> None:
    """ghz asks so, and grpcurl where it describes an RPC; the library's pool knows no RPC by name."""
    service = "dinemesh.reservation.v1.ReservationService"
    async with serving(tmp_path) as server:
        ask: Any = server.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=pb.ServerReflectionRequest.SerializeToString,
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )
        questions = [
            pb.ServerReflectionRequest(file_containing_symbol=f"{service}.{name}")
            for name in ("GetReservation", "FrobnicateReservation")
        ]
        found, missing = [answer async for answer in ask(iter(questions), timeout=10)]
    names = {
        FileDescriptorProto.FromString(raw).name
        for raw in found.file_descriptor_response.file_descriptor_proto
    }
    assert "dinemesh/reservation/v1/reservation_service.proto" in names
    assert missing.error_response.error_code == 5
