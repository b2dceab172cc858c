"""Writes the shapes that the edge holds bodies in JSON against, byte for byte the same each time.

Usage:
    python -m protos.bodies             writes envoy/edge/contract.lua
    python -m protos.bodies --check     says whether it is what the contracts say, exits 1 if not
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from protos.generate import ROOT, SOURCES, descriptor_set, write_or_compare

TARGET = ROOT / "envoy" / "edge" / "contract.lua"
HEAD = """\
-- Made by `python -m protos.bodies` out of protos/. Do not edit.
-- What bodies in JSON may have, for bodies.lua: the calls that take one, and the fields of their messages.
"""

VERBS = ("post", "patch")
"""Those whose bodies envoy/edge/routes/json.yaml leads through the check."""

_HTTP: Any = annotations_pb2.http
_Field = descriptor_pb2.FieldDescriptorProto
_NUMBERS = frozenset(
    {
        _Field.TYPE_DOUBLE,
        _Field.TYPE_FLOAT,
        _Field.TYPE_INT64,
        _Field.TYPE_UINT64,
        _Field.TYPE_INT32,
        _Field.TYPE_FIXED64,
        _Field.TYPE_FIXED32,
        _Field.TYPE_UINT32,
        _Field.TYPE_SFIXED32,
        _Field.TYPE_SFIXED64,
        _Field.TYPE_SINT32,
        _Field.TYPE_SINT64,
    }
)
_SCALARS = dict.fromkeys(_NUMBERS, "number") | {
    _Field.TYPE_STRING: "string",
    _Field.TYPE_BYTES: "bytes",
    _Field.TYPE_BOOL: "boolean",
}
# Messages that are no objects in the JSON mapping of proto3.
_WELL_KNOWN = {
    "google.protobuf.Timestamp": "time",
    "google.protobuf.Duration": "duration",
    "google.protobuf.FieldMask": "mask",
    "google.protobuf.StringValue": "string",
    "google.protobuf.BytesValue": "bytes",
    "google.protobuf.BoolValue": "boolean",
    **{
        f"google.protobuf.{name}Value": "number"
        for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32")
    },
}
_IN_PATH = re.compile(r"{(\w+)}")


def text(sources: Path = SOURCES) -> str:
    """The file as it ought to be. Raises NotImplementedError where the contracts have what bodies.lua cannot
    hold a body against."""
    return table(descriptor_set(sources))


def table(contracts: descriptor_pb2.FileDescriptorSet) -> str:
    messages = {f"{file.package}.{one.name}": one for file in contracts.file for one in file.message_type}
    enums = {f"{file.package}.{one.name}": one for file in contracts.file for one in file.enum_type}
    calls = sorted(_calls(contracts), key=lambda call: (call["path"], call["verb"]))
    fields: dict[str, list[Mapping[str, object]]] = {}

    def add(name: str, inside: tuple[str, ...] = ()) -> None:
        if name in inside:
            raise NotImplementedError(f"{name} has itself inside: bodies could be nested without end")
        if name not in messages or name.startswith("google.protobuf."):
            raise NotImplementedError(f"{name} has a JSON form of its own")
        fields[name] = [_field(name, one, enums) for one in messages[name].field]
        for one in fields[name]:
            if "message" in one:
                add(str(one["message"]), (*inside, name))

    for call in calls:
        add(call["request"])
    lines = [HEAD, "local CONTRACT = {", "  calls = {"]
    lines += [f"    {_lua(call)}," for call in calls]
    lines += ["  },", "  messages = {"]
    for name in sorted(fields):
        lines += [f"    [{_lua(name)}] = {{", *(f"      {_lua(one)}," for one in fields[name]), "    },"]
    return "\n".join([*lines, "  },", "}", ""])


def _calls(contracts: descriptor_pb2.FileDescriptorSet) -> Iterator[dict[str, Any]]:
    for file in contracts.file:
        for service in file.service:
            for method in service.method:
                rule = method.options.Extensions[_HTTP]
                if not rule.body:
                    continue
                verb = rule.WhichOneof("pattern")
                if verb not in VERBS or rule.body != "*" or rule.additional_bindings:
                    raise NotImplementedError(f"{method.name}: a body that the edge would not look at")
                path = getattr(rule, verb)
                yield {
                    "verb": verb.upper(),
                    "path": _pattern(path),
                    "request": method.input_type.removeprefix("."),
                    "of_path": _IN_PATH.findall(path),
                }


def _pattern(path: str) -> str:
    """A pattern of Lua for what the transcoder takes as this path: an id may have a colon only where a custom
    verb comes after it, since the last one counts, and a slash at the end is none."""
    _, _, verb = path.partition(":")
    place = "[^/]+" if verb else "[^/:]+"
    fixed = _IN_PATH.split(path)[::2]
    return "^" + place.join(re.sub(r"([^\w/:])", r"%\1", one) for one in fixed) + "/?$"


def _field(
    message: str, field: _Field, enums: Mapping[str, descriptor_pb2.EnumDescriptorProto]
) -> Mapping[str, object]:
    where = f"{message}.{field.name}"
    if field.HasField("oneof_index") and not field.proto3_optional:
        raise NotImplementedError(f"{where}: of a oneof, two fields would have to be refused")
    found: dict[str, object] = {"name": field.name, "json_name": field.json_name}
    if field.label == _Field.LABEL_REPEATED:
        found["list"] = True
    name = field.type_name.removeprefix(".")
    if field.type in _SCALARS:
        found["kind"] = _SCALARS[field.type]
    elif field.type == _Field.TYPE_ENUM:
        found["kind"] = "enum"
        found["values"] = ", ".join(one.name for one in enums[name].value if one.number)
    elif field.type == _Field.TYPE_MESSAGE:
        found |= {"kind": _WELL_KNOWN[name]} if name in _WELL_KNOWN else {"message": name}
    else:
        raise NotImplementedError(f"{where}: a type that the contracts did not use so far")
    return found


def _lua(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_lua(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(_lua, value)) + "}"
    # Texts of the contracts are ASCII without escapes, and stand in Lua as in JSON.
    return json.dumps(value)


def main(arguments: list[str] | None = None) -> int:
    return write_or_compare(TARGET, text, "protos.bodies", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
