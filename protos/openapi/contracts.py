"""The contracts as protoc understood them, every element with its comment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.rpc import code_pb2

from dinemesh.error.v1 import reason_pb2
from protos.generate import SOURCES, descriptor_set

# Their stubs do not say that they are extensions.
_HTTP: Any = annotations_pb2.http
_CODE: Any = reason_pb2.code
_Field = descriptor_pb2.FieldDescriptorProto

INTEGERS = {
    _Field.TYPE_INT32: 32,
    _Field.TYPE_INT64: 64,
}
"""Bits of the integer types that the contracts use."""


@dataclass(frozen=True)
class Field:
    """A field of a message.

    `type` is "string", "bool", "bytes", "int32", "int64", or the full name of a message or enum.
    """

    name: str
    json_name: str
    comment: str
    type: str
    repeated: bool
    optional: bool
    """Declared `optional`: left out and zero are two things."""
    oneof: str


@dataclass(frozen=True)
class Message:
    name: str
    comment: str
    fields: tuple[Field, ...]

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Value:
    name: str
    number: int
    comment: str
    code: int
    """Of a value of dinemesh.error.v1.Reason: the google.rpc.Code of such a refusal. Else 0."""


@dataclass(frozen=True)
class Enum:
    name: str
    comment: str
    values: tuple[Value, ...]

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Method:
    """An RPC with an HTTP form."""

    name: str
    comment: str
    verb: str
    path: str
    body: bool
    """Whether the fields that the path does not take come in the body; else they come in the query."""
    request: str
    response: str
    streams: bool


@dataclass(frozen=True)
class Service:
    name: str
    comment: str
    methods: tuple[Method, ...]

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Contracts:
    messages: Mapping[str, Message]
    enums: Mapping[str, Enum]
    services: tuple[Service, ...]
    """Those with an HTTP form, in order of their names; methods in the order of the contract."""


def read(sources: Path = SOURCES) -> Contracts:
    messages: dict[str, Message] = {}
    enums: dict[str, Enum] = {}
    services: list[Service] = []
    for file in descriptor_set(sources, source_info=True).file:
        if not file.name.startswith("dinemesh/"):
            continue
        said = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        messages |= {one.name: one for one in _messages(file, said)}
        enums |= {one.name: one for one in _enums(file, said)}
        services += [one for one in _services(file, said) if one.methods]
    return Contracts(messages, enums, tuple(sorted(services, key=lambda one: one.name)))


_Said = Mapping[tuple[int, ...], str]


def _messages(file: descriptor_pb2.FileDescriptorProto, said: _Said) -> Iterator[Message]:
    for at, message in enumerate(file.message_type):
        if message.nested_type or message.enum_type:
            raise NotImplementedError(f"{message.name}: nothing is nested in the contracts so far")
        fields = tuple(
            _field(message, field, _text(said, 4, at, 2, number))
            for number, field in enumerate(message.field)
        )
        yield Message(f"{file.package}.{message.name}", _text(said, 4, at), fields)


def _field(message: descriptor_pb2.DescriptorProto, field: _Field, comment: str) -> Field:
    match field.type:
        case _Field.TYPE_STRING:
            kind = "string"
        case _Field.TYPE_BOOL:
            kind = "bool"
        case _Field.TYPE_BYTES:
            kind = "bytes"
        case _Field.TYPE_MESSAGE | _Field.TYPE_ENUM:
            kind = field.type_name.removeprefix(".")
        case number if number in INTEGERS:
            kind = f"int{INTEGERS[number]}"
        case _:
            raise NotImplementedError(
                f"{message.name}.{field.name}: a type that the contracts did not use so far"
            )
    in_oneof = field.HasField("oneof_index") and not field.proto3_optional
    return Field(
        name=field.name,
        json_name=field.json_name,
        comment=comment,
        type=kind,
        repeated=field.label == _Field.LABEL_REPEATED,
        optional=field.proto3_optional,
        oneof=message.oneof_decl[field.oneof_index].name if in_oneof else "",
    )


def _enums(file: descriptor_pb2.FileDescriptorProto, said: _Said) -> Iterator[Enum]:
    for at, enum in enumerate(file.enum_type):
        values = tuple(
            Value(value.name, value.number, _text(said, 5, at, 2, number), value.options.Extensions[_CODE])
            for number, value in enumerate(enum.value)
        )
        yield Enum(f"{file.package}.{enum.name}", _text(said, 5, at), values)


def _services(file: descriptor_pb2.FileDescriptorProto, said: _Said) -> Iterator[Service]:
    for at, service in enumerate(file.service):
        methods = []
        for number, method in enumerate(service.method):
            rule = method.options.Extensions[_HTTP]
            verb = rule.WhichOneof("pattern")
            if verb is None:
                continue
            if rule.body not in ("", "*") or rule.additional_bindings or rule.response_body:
                raise NotImplementedError(
                    f"{method.name}: an HTTP form that the contracts did not use so far"
                )
            methods.append(
                Method(
                    name=method.name,
                    comment=_text(said, 6, at, 2, number),
                    verb=verb,
                    path=getattr(rule, verb),
                    body=rule.body == "*",
                    request=method.input_type.removeprefix("."),
                    response=method.output_type.removeprefix("."),
                    streams=method.server_streaming,
                )
            )
        yield Service(f"{file.package}.{service.name}", _text(said, 6, at), tuple(methods))


def _text(said: _Said, *path: int) -> str:
    """A comment with its paragraphs, each on one line."""
    lines = [line.strip() for line in said.get(path, "").strip().splitlines()]
    paragraphs = "\n".join(lines).split("\n\n")
    return "\n\n".join(" ".join(one.split("\n")) for one in paragraphs)


def code_name(code: int) -> str:
    return code_pb2.Code.Name(code)
