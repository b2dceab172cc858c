"""Each service tells what it offers (reflection v1 and v1alpha) and how it is (health, metrics)."""

from __future__ import annotations

import asyncio
import urllib.request

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.mesh.people import City
from tests.support.mesh import SERVICES, RunningMesh

PUBLIC = {
    "dinemesh.reservation.v1.ReservationService",
    "dinemesh.deposit.v1.DepositService",
    "dinemesh.restaurant.v1.RestaurantService",
    "dinemesh.history.v1.HistoryService",
}
SERVING = health_pb2.HealthCheckResponse.SERVING


async def reflect(
    channel: grpc.aio.Channel, version: str, *requests: reflection_pb2.ServerReflectionRequest
) -> list[reflection_pb2.ServerReflectionResponse]:
    """The answers to `requests`; both versions have the same messages."""
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return [answer async for answer in method(iter(requests), timeout=10)]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize("service", SERVICES)
async def test_each_service_describes_all_four_packages(city: City, service: str, version: str) -> None:
    channel = city.doors.channels[service]
    (listed,) = await reflect(channel, version, reflection_pb2.ServerReflectionRequest(list_services="*"))
    names = {one.name for one in listed.list_services_response.service}
    assert names >= PUBLIC
    answers = await reflect(
        channel,
        version,
        *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in sorted(PUBLIC)),
    )
    described = set()
    for answer in answers:
        assert not answer.HasField("error_response"), answer
        for serialized in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
            described |= {f"{file.package}.{one.name}" for one in file.service}
    assert described >= PUBLIC


async def test_the_sandbox_describes_itself(city: City) -> None:
    channel = city.doors.channels["sandbox"]
    (listed,) = await reflect(channel, "v1", reflection_pb2.ServerReflectionRequest(list_services="*"))
    assert "dinemesh.sandbox.v1.SandboxService" in {one.name for one in listed.list_services_response.service}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("asked", ["", "live"])
async def test_each_service_is_ready_and_alive(city: City, service: str, asked: str) -> None:
    stub = health_pb2_grpc.HealthStub(city.doors.channels[service])
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=asked), timeout=5)
    assert answer.status == SERVING


async def test_the_sandbox_is_ready_too(city: City) -> None:
    stub = health_pb2_grpc.HealthStub(city.doors.channels["sandbox"])
    assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == SERVING


async def test_liveness_does_not_depend_on_the_database_of_another_part(
    city: City, mesh: RunningMesh
) -> None:
    await asyncio.to_thread(mesh["deposit"].stop)
    try:
        stub = health_pb2_grpc.HealthStub(city.doors.channels["reservation"])
        for asked in ("", "live"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=asked), timeout=5)
            assert answer.status == SERVING, asked
    finally:
        mesh["deposit"].start()


METRICS = {
    "dinemesh_calls_total",
    "dinemesh_calls_in_flight",
    "dinemesh_store_queue_changes",
    "dinemesh_store_group_changes",
    "dinemesh_inbox_lag_seconds",
    "dinemesh_dead_letter_messages",
    'dinemesh_kept_rows{table="inbox"}',
    "dinemesh_kept_oldest_seconds",
}
PUBLISHES = {"dinemesh_outbox_oldest_unsent_seconds", 'dinemesh_kept_rows{table="outbox"}'}


@pytest.mark.parametrize("service", SERVICES)
async def test_each_service_measures_itself(city: City, mesh: RunningMesh, service: str) -> None:
    place, alice = await city.place(), city.customer()
    booked = await alice.book(place)
    await alice.sees_in_timeline(booked, "RESERVATION_CONFIRMED")
    await alice.deposits(booked)
    url = f"http://127.0.0.1:{mesh.metrics_ports[service]}/metrics"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(read)
    wanted = METRICS | (PUBLISHES if service != "history" else set())
    missing = {name for name in wanted if name not in text}
    assert not missing
    assert alice.name not in text, "a customer is no label"
