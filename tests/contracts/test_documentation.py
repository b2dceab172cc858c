"""Everything in the contracts says what it means."""

import re
from collections import Counter

from dinemesh.error.v1 import reason_pb2
from tests.contracts.contracts import contracts, elements

REASONS = {name.removeprefix("REASON_") for name in reason_pb2.Reason.DESCRIPTOR.values_by_name} - {
    "UNSPECIFIED"
}
# Said by the edge, about any call; the reasons of the services have lower numbers.
OF_THE_EDGE = {
    name.removeprefix("REASON_")
    for name, value in reason_pb2.Reason.DESCRIPTOR.values_by_name.items()
    if value.number >= 50
}
# What is written in capitals where an rpc tells its reasons, and is no reason.
STATES = {"PENDING", "FINISHED"}


def test_every_element_is_documented() -> None:
    silent = [
        f"{element.file}: {element.kind} {element.name}" for element in elements() if not element.comment
    ]
    assert silent == []


def test_the_search_for_comments_sees_every_kind_of_element() -> None:
    seen = Counter(element.kind for element in elements())
    assert set(seen) == {"service", "rpc", "message", "field", "oneof", "enum", "value", "option"}
    assert seen["rpc"] >= 24
    assert seen["field"] > 200


def test_every_reason_that_an_rpc_names_exists() -> None:
    named = {
        (element.name, word)
        for element in elements()
        if element.kind in {"rpc", "service"} and not element.name.startswith("dinemesh.sandbox.")
        for part in element.comment.split("Reasons:")[1:]
        for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", part)
        if len(word) > 3
    }
    assert len(named) > 20
    assert {pair for pair in named if pair[1] not in REASONS | STATES} == set()


def test_every_reason_but_the_general_ones_is_named_where_it_can_occur() -> None:
    told = " ".join(element.comment for element in elements() if element.kind in {"rpc", "service"})
    assert [reason for reason in sorted(REASONS - OF_THE_EDGE) if not re.search(rf"\b{reason}\b", told)] == []


def test_every_reason_tells_a_remedy() -> None:
    comments = {element.name: element.comment for element in elements() if element.kind == "value"}
    without = [
        name for name in REASONS if "Remedy" not in comments[f"dinemesh.error.v1.Reason.REASON_{name}"]
    ]
    assert without == []


def test_a_package_is_named_after_its_folder() -> None:
    for file in contracts():
        assert file.package == file.name.rpartition("/")[0].replace("/", "."), file.name
