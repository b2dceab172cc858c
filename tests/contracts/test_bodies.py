"""The shapes that the edge holds bodies in JSON against are those of the contracts (envoy/edge/contract.lua).

That they are held is shown by tests/edge/test_bodies.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from protos import bodies
from protos.check import Unfit, check_bodies
from protos.generate import descriptor_set

_Field = descriptor_pb2.FieldDescriptorProto
_HTTP: Any = annotations_pb2.http


def test_the_committed_table_is_what_the_contracts_say() -> None:
    check_bodies()


def test_a_table_that_is_not_what_the_contracts_say_is_found(tmp_path: Path) -> None:
    table = tmp_path / "contract.lua"
    table.write_text(bodies.TARGET.read_text().replace('name = "note"', 'name = "notes"', 1))
    with pytest.raises(Unfit, match=r"run `python -m protos\.bodies`"):
        check_bodies(table=table)


def request_with(field: _Field) -> descriptor_pb2.FileDescriptorSet:
    """The contracts, with one more field in CreateReservationRequest."""
    contracts = descriptor_set()
    (request,) = (
        one for file in contracts.file for one in file.message_type if one.name == "CreateReservationRequest"
    )
    field.name, field.json_name, field.number = "more", "more", 99
    request.field.append(field)
    return contracts


def in_a_oneof() -> descriptor_pb2.FileDescriptorSet:
    return request_with(_Field(type=_Field.TYPE_STRING, oneof_index=0))


def itself_inside() -> descriptor_pb2.FileDescriptorSet:
    name = ".dinemesh.reservation.v1.CreateReservationRequest"
    return request_with(_Field(type=_Field.TYPE_MESSAGE, type_name=name))


def anything() -> descriptor_pb2.FileDescriptorSet:
    return request_with(_Field(type=_Field.TYPE_MESSAGE, type_name=".google.protobuf.Struct"))


def a_group() -> descriptor_pb2.FileDescriptorSet:
    return request_with(_Field(type=_Field.TYPE_GROUP))


def by_another_verb() -> descriptor_pb2.FileDescriptorSet:
    contracts = descriptor_set()
    for file in contracts.file:
        for service in file.service:
            for method in service.method:
                if method.name == "ModifyReservation":
                    method.options.Extensions[_HTTP].put = "/v1/reservations/{reservation_id}"
    return contracts


@pytest.mark.parametrize(
    ("contracts", "complaint"),
    [
        (in_a_oneof, "more: of a oneof"),
        (itself_inside, "has itself inside"),
        (anything, "Struct has a JSON form of its own"),
        (a_group, "a type that the contracts did not use so far"),
        (by_another_verb, "ModifyReservation: a body that the edge would not look at"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_a_body_cannot_be_held_against_is_refused_and_not_left_out(
    contracts: Any, complaint: str
) -> None:
    with pytest.raises(NotImplementedError, match=complaint):
        bodies.table(contracts())
