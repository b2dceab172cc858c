"""The contracts as the tests read them: what protoc understood, comments included."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from google.protobuf import descriptor_pb2

from protos.generate import descriptor_set

FileDescriptor = descriptor_pb2.FileDescriptorProto


@cache
def contracts() -> tuple[FileDescriptor, ...]:
    every = descriptor_set(source_info=True)
    return tuple(file for file in every.file if file.name.startswith("dinemesh/"))


@dataclass(frozen=True)
class Element:
    """Something with a name that a comment can stand before."""

    file: str
    name: str
    kind: str
    comment: str


def elements() -> Iterator[Element]:
    for file in contracts():
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for path, kind, name in walk(file):
            yield Element(file.name, f"{file.package}.{name}", kind, comments.get(path, "").strip())


Place = tuple[tuple[int, ...], str, str]


def walk(file: FileDescriptor) -> Iterator[Place]:
    """Path (field numbers of descriptor.proto and indexes), kind and name of all that is declared."""
    for index, message in enumerate(file.message_type):
        yield from walk_message((4, index), message, "")
    for index, enum in enumerate(file.enum_type):
        yield from walk_enum((5, index), enum, "")
    for index, service in enumerate(file.service):
        yield (6, index), "service", service.name
        for at, method in enumerate(service.method):
            yield (6, index, 2, at), "rpc", f"{service.name}.{method.name}"
    for index, extension in enumerate(file.extension):
        yield (7, index), "option", extension.name


def walk_message(
    path: tuple[int, ...], message: descriptor_pb2.DescriptorProto, outer: str
) -> Iterator[Place]:
    name = f"{outer}{message.name}"
    yield path, "message", name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), "field", f"{name}.{field.name}"
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for index, oneof in enumerate(message.oneof_decl):
        if index not in synthetic:
            yield (*path, 8, index), "oneof", f"{name}.{oneof.name}"
    for index, nested in enumerate(message.nested_type):
        yield from walk_message((*path, 3, index), nested, f"{name}.")
    for index, enum in enumerate(message.enum_type):
        yield from walk_enum((*path, 4, index), enum, f"{name}.")


def walk_enum(path: tuple[int, ...], enum: descriptor_pb2.EnumDescriptorProto, outer: str) -> Iterator[Place]:
    name = f"{outer}{enum.name}"
    yield path, "enum", name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), "value", f"{name}.{value.name}"
