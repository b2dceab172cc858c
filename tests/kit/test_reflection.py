"""Both versions of reflection know what a service serves, and what the edge serves beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from dinemesh.kit import reflection
from tests.contracts.test_bindings import BINDINGS
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


async def described(
    served: list[str], *, others: bool = True
) -> tuple[set[str], dict[str, list[str]], set[tuple[str, str]]]:
    """What a server of `served` lists, the RPCs of each service that it describes, and names of fields."""
    server = grpc.aio.server()
    reflection.add_to(server, served, others=others)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask: Any = channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                request_serializer=pb.ServerReflectionRequest.SerializeToString,
                response_deserializer=pb.ServerReflectionResponse.FromString,
            )
            listing = pb.ServerReflectionRequest(list_services="")
            (listed,) = [answer async for answer in ask(iter([listing]), timeout=10)]
            names = {one.name for one in listed.list_services_response.service}
            questions = [pb.ServerReflectionRequest(file_containing_symbol=name) for name in sorted(names)]
            answers = [answer async for answer in ask(iter(questions), timeout=10)]
    finally:
        await server.stop(None)
    rpcs: dict[str, list[str]] = {}
    fields: set[tuple[str, str]] = set()
    for answer in answers:
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(raw)
            for service in file.service:
                rpcs[f"{file.package}.{service.name}"] = [one.name for one in service.method]
            for message in file.message_type:
                fields |= {(field.name, field.json_name) for field in message.field}
    return names, rpcs, fields


async def test_what_only_another_service_answers_is_not_described() -> None:
    """So the edge, which asks reservation, describes exactly what it lets through."""
    names, rpcs, _ = await described(["dinemesh.reservation.v1.ReservationService"])
    ours = {name for name in rpcs if name.startswith("dinemesh.")}
    assert ours == {f"dinemesh.{name}.v1.{name.capitalize()}Service" for name in PACKAGES}
    assert {name for name in names if name.startswith("dinemesh.")} == ours
    told = {f"{name.rpartition('.')[2]}.{rpc}" for name in ours for rpc in rpcs[name]}
    assert told == {name for name, form in BINDINGS.items() if form}


async def test_a_service_describes_all_that_it_answers_itself() -> None:
    service = "dinemesh.deposit.v1.DepositService"
    _, rpcs, _ = await described([service])
    assert {f"DepositService.{name}" for name in rpcs[service]} == {
        name for name in BINDINGS if name.startswith("DepositService.")
    }


async def test_the_sandbox_describes_itself_alone() -> None:
    service = "dinemesh.sandbox.v1.SandboxService"
    names, rpcs, _ = await described([service], others=False)
    assert {name for name in (*names, *rpcs) if name.startswith("dinemesh.")} == {service}
    assert "ListCharges" in rpcs[service]


async def test_fields_have_the_names_that_json_gives_them() -> None:
    _, _, fields = await described([])
    assert ("restaurant_id", "restaurantId") in fields
    assert all(json_name for _, json_name in fields)


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
