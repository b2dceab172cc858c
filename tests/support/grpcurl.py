"""Stands in for grpcurl, a Go tool that need not be installed where the tests run.

It takes the same command lines and, like grpcurl, knows nothing of the contracts: services, messages and
fields come from the server's reflection, version v1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

TIMEOUT_SECONDS = 15


class Reflection:
    """What a server says of itself."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._ask = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        self._files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        self.pool = descriptor_pool.DescriptorPool()

    def services(self) -> list[str]:
        answer = self._one(reflection_pb2.ServerReflectionRequest(list_services="*"))
        return sorted(service.name for service in answer.list_services_response.service)

    def learn(self, symbol: str) -> None:
        """Puts the file that defines `symbol`, and all that it imports, into the pool."""
        self._take(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
        for name in list(self._files):
            self._add(name, set())

    def _take(self, request: reflection_pb2.ServerReflectionRequest) -> None:
        for serialized in self._one(request).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
            self._files[file.name] = file
        for missing in {name for file in self._files.values() for name in file.dependency} - set(self._files):
            self._take(reflection_pb2.ServerReflectionRequest(file_by_filename=missing))

    def _add(self, name: str, added: set[str]) -> None:
        if name in added:
            return
        added.add(name)
        for imported in self._files[name].dependency:
            self._add(imported, added)
        self.pool.Add(self._files[name])

    def _one(
        self, request: reflection_pb2.ServerReflectionRequest
    ) -> reflection_pb2.ServerReflectionResponse:
        (answer,) = self._ask(iter([request]), timeout=TIMEOUT_SECONDS)
        if answer.HasField("error_response"):
            raise SystemExit(f"reflection: {answer.error_response.error_message}")
        return answer


def call(
    channel: grpc.Channel,
    method_name: str,
    body: str,
    metadata: tuple[tuple[str, str | bytes], ...],
    seconds: float = TIMEOUT_SECONDS,
) -> Iterator[Message]:
    """The answers of any method, described by the server itself."""
    service_name, _, rpc = method_name.partition("/")
    reflection = Reflection(channel)
    reflection.learn(service_name)
    method = reflection.pool.FindServiceByName(service_name).FindMethodByName(rpc)
    request_type = message_factory.GetMessageClass(method.input_type)
    answer_type = message_factory.GetMessageClass(method.output_type)
    request = json_format.Parse(body, request_type(), descriptor_pool=reflection.pool)
    # A unary answer is a stream of one.
    yield from channel.unary_stream(
        f"/{service_name}/{rpc}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=answer_type.FromString,
    )(request, metadata=metadata, timeout=seconds)


def folder_with_grpcurl(scratch: Path) -> Path:
    """A folder for PATH in which there is this `grpcurl`."""
    tool = scratch / "grpcurl"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.support.grpcurl "$@"\n')
    tool.chmod(0o755)
    return scratch


def explain(error: grpc.RpcError) -> str:
    assert isinstance(error, grpc.Call)
    lines = [f"ERROR:\n  Code: {error.code().name}\n  Message: {error.details()}"]
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    lines.append(f"  Reason: {info.reason}")
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="grpcurl")
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-H", action="append", default=[], dest="headers")
    parser.add_argument("-d", default="{}", dest="body")
    parser.add_argument("-max-time", type=float, default=TIMEOUT_SECONDS, dest="seconds")
    parser.add_argument("address")
    parser.add_argument("words", nargs="+")
    given = parser.parse_args(arguments)
    headers = (header.partition(":") for header in given.headers)
    metadata = tuple((key.strip().lower(), value.strip()) for key, _, value in headers)
    with grpc.insecure_channel(given.address) as channel:
        match given.words:
            case ["list"]:
                say("\n".join(Reflection(channel).services()))
            case ["describe", symbol]:
                reflection = Reflection(channel)
                reflection.learn(symbol)
                say(f"{reflection.pool.FindMessageTypeByName(symbol).full_name} is a message")
            case [method]:
                try:
                    for answer in call(channel, method, given.body, metadata, given.seconds):
                        say(json_format.MessageToJson(answer))
                except grpc.RpcError as error:
                    sys.exit(explain(error))
            case _:
                parser.error("one method, `list`, or `describe <message>`")


if __name__ == "__main__":
    main(sys.argv[1:])
