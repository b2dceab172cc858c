"""The OpenAPI document says what the contracts say, no more and no less."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from openapi_spec_validator import OpenAPIV31SpecValidator

from deposit_svc import servicer as deposit
from dinemesh.error.v1 import reason_pb2
from dinemesh.kit import errors
from dinemesh.kit.interceptors import ANYONE, Access
from history_svc import servicer as history
from protos.check import Unfit, check_document
from protos.generate import SOURCES
from protos.openapi import examples, rules
from protos.openapi.__main__ import TARGET, main, text
from protos.openapi.contracts import Contracts, Method, read
from reservation_svc import servicer as reservation
from restaurant_svc import servicer as restaurant
from tests.contracts.test_bindings import BINDINGS, NOT_AT_THE_EDGE, STREAMS

Json = dict[str, Any]

ACCESS: Mapping[str, Access] = {
    name.rpartition("/")[2]: access
    for service in (reservation, deposit, restaurant, history)
    for name, access in service.ACCESS.items()
}
RESERVATION_SERVICE = "dinemesh/reservation/v1/reservation_service.proto"


@pytest.fixture(scope="module")
def contracts() -> Contracts:
    return read()


@pytest.fixture(scope="module")
def document() -> Json:
    found: Json = json.loads(TARGET.read_text())
    return found


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def methods(contracts: Contracts) -> dict[str, Method]:
    return {method.name: method for service in contracts.services for method in service.methods}


def responses(document: Json, operation: Json) -> dict[str, Json]:
    found = {}
    for status, response in operation["responses"].items():
        name = response.get("$ref", "").rpartition("/")[2]
        found[status] = document["components"]["responses"][name] if name else response
    return found


def validator(document: Json, schema: Json) -> jsonschema.Draft202012Validator:
    """Of a schema of the document, with its references, formats and all."""
    whole = {**schema, "components": document["components"]}
    return jsonschema.Draft202012Validator(
        whole, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def message(name: str) -> Message:
    package, _, short = name.rpartition(".")
    folder = package.replace(".", "/")
    for file in sorted(SOURCES.glob(f"{folder}/*.proto")):
        module = importlib.import_module(f"{package}.{file.stem}_pb2")
        if hasattr(module, short):
            made: Message = getattr(module, short)()
            return made
    raise AssertionError(f"{name} is in no contract")


# --- the file


def test_the_committed_document_is_what_the_contracts_say() -> None:
    assert TARGET.read_text() == text()
    assert main(["--check"]) == 0
    check_document()


def test_a_document_that_is_not_what_the_contracts_say_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "protos"
    shutil.copytree(SOURCES / "dinemesh", copy / "dinemesh")
    shutil.copy(TARGET, copy)
    check_document(copy)
    changed = copy / RESERVATION_SERVICE
    changed.write_text(changed.read_text().replace("at most 500 characters", "at most 400 characters"))
    with pytest.raises(Unfit, match=r"openapi\.json"):
        check_document(copy)


def test_it_is_valid_openapi(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_nothing_in_it_is_left_over(document: Json) -> None:
    """Every component is referred to, and every reference leads somewhere."""
    referred = set(re.findall(r'"#/(components/\w+/\w+)"', json.dumps(document)))
    there = {
        f"components/{kind}/{name}"
        for kind, named in document["components"].items()
        if kind != "securitySchemes"
        for name in named
    }
    assert referred == there


# --- operations


def test_every_http_form_is_there_and_nothing_else(document: Json) -> None:
    told = {
        f"{operation['tags'][0]}.{operation['operationId']}": f"{verb.upper()} {path}"
        for path, verb, operation in operations(document)
    }
    assert told == {name: form for name, form in BINDINGS.items() if form != NOT_AT_THE_EDGE}


def test_what_is_not_at_the_edge_is_not_mentioned(document: Json) -> None:
    said = json.dumps({key: document[key] for key in ("paths", "components")})
    for name, form in BINDINGS.items():
        if form == NOT_AT_THE_EDGE:
            assert f'"{name.partition(".")[2]}' not in said
    assert "andbox" not in said
    assert "Snapshot" not in said


def test_only_what_is_for_anyone_needs_no_token(document: Json) -> None:
    """By the tables that the services decide by."""
    open_to_all = {
        operation["operationId"] for _, _, operation in operations(document) if not operation["security"]
    }
    assert open_to_all == {name for name, access in ACCESS.items() if access is ANYONE}
    for _, _, operation in operations(document):
        assert operation["security"] in ([], [{"token": []}])


def test_the_fields_of_a_request_are_in_the_path_the_query_or_the_body(
    document: Json, contracts: Contracts
) -> None:
    for path, _, operation in operations(document):
        method = methods(contracts)[operation["operationId"]]
        parameters = {one["name"]: one for one in operation.get("parameters", [])}
        assert {name for name, one in parameters.items() if one["in"] == "path"} == set(
            re.findall(r"{(\w+)}", path)
        )
        in_body: set[str] = set()
        if method.body:
            content = operation["requestBody"]["content"]
            assert list(content) == ["application/json"]
            body = document["components"]["schemas"][
                content["application/json"]["schema"]["$ref"].rpartition("/")[2]
            ]
            in_body = set(body["properties"])
        fields = contracts.messages[method.request].fields
        assert {one.json_name for one in fields if one.name not in parameters} == in_body
        assert {one.name for one in fields if one.json_name not in in_body} == set(parameters)


def test_watches_are_lines_or_events_and_all_else_is_json(document: Json) -> None:
    for _, _, operation in operations(document):
        name = f"{operation['tags'][0]}.{operation['operationId']}"
        streams = name in STREAMS
        types = {"application/x-ndjson", "text/event-stream"} if streams else {"application/json"}
        for status, response in responses(document, operation).items():
            assert set(response["content"]) == (types if status == "200" else {"application/json"}), name


def test_every_operation_parameter_and_schema_says_what_it_is(document: Json) -> None:
    for path, verb, operation in operations(document):
        assert operation["summary"]
        assert operation["description"].startswith(operation["summary"])
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (verb, path, parameter["name"])
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name


def test_what_a_call_creates_leads_to_the_calls_about_it(document: Json, contracts: Contracts) -> None:
    made = document["paths"]["/v1/reservations"]["post"]["responses"]["200"]["links"]
    assert {"GetReservation", "ModifyReservation", "CancelReservation", "WatchReservation"} <= set(made)
    assert made["AcceptBooking"]["parameters"] == {
        "restaurant_id": "$response.body#/reservation/restaurantId",
        "reservation_id": "$response.body#/reservation/reservationId",
    }
    assert "OpenSlots" not in made
    assert "OpenSlots" in document["paths"]["/v1/restaurants"]["post"]["responses"]["200"]["links"]
    for _, _, operation in operations(document):
        for link in operation["responses"]["200"].get("links", {}).values():
            assert link["operationId"] in methods(contracts)


# --- limits


@pytest.mark.parametrize(
    "word", [r"\bRequired\b", r"\d", r"\bUUID\b", r"\bAt (?:least|most)\b", r"\bnegative\b"]
)
def test_no_limit_in_a_comment_of_a_request_is_overlooked(contracts: Contracts, word: str) -> None:
    """A comment with a number or a word of limits is read by a rule, or is listed here as prose."""
    prose = {
        # Rules of the restaurant or of the calendar; no schema of one field can say them.
        "OpenSlotsRequest.last_date",
        "CloseSlotsRequest.last_date",
        # What its fields say, and the mode.
        "Policy.deposit_per_person",
    }
    asked = {method.request for method in methods(contracts).values()} | {"dinemesh.restaurant.v1.Policy"}
    seen = 0
    for name in asked:
        for field in contracts.messages[name].fields:
            if re.search(word, field.comment):
                seen += 1
                read_by_a_rule = rules.limits(field) or (
                    rules.is_required(field) and not re.search(r"\d", field.comment)
                )
                assert read_by_a_rule or f"{name.rpartition('.')[2]}.{field.name}" in prose, field
    assert seen > 0, "nothing was looked at"


def test_what_generated_clients_parse_first_has_no_pattern(document: Json) -> None:
    """The ones of openapi-generator for Python match it against the parsed date, and fail."""

    def schemas(part: Any) -> Iterator[Json]:
        if isinstance(part, dict):
            yield part
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from schemas(inner)

    times = [one for one in schemas(document) if one.get("format") in ("date-time", "date")]
    assert times
    assert not [one for one in times if "pattern" in one]


def test_every_phrase_of_the_rules_is_used(contracts: Contracts) -> None:
    for phrase, kinds, _ in rules.CONTRACTS_SAY:
        said = [
            field
            for one in contracts.messages.values()
            for field in one.fields
            if re.search(phrase, field.comment) and ("repeated" if field.repeated else field.type) in kinds
        ]
        assert said, phrase


def test_a_field_says_what_the_contract_says(document: Json) -> None:
    schemas = document["components"]["schemas"]
    create = schemas["CreateReservationRequest"]
    assert create["required"] == [
        "requestId",
        "restaurantId",
        "dineTime",
        "partySize",
        "policyEtag",
        "paymentToken",
    ]
    assert create["properties"]["partySize"] == {
        "type": "integer",
        "format": "int32",
        "minimum": 1,
        "maximum": 1000,
        "description": "Number of guests, 1 to 1000, and at most the policy's max_party_size. Required.",
    }
    assert create["properties"]["note"]["maxLength"] == 500
    assert create["properties"]["requestId"]["$ref"] == "#/components/schemas/Uuid"
    assert "required" not in schemas["MoneyInput"]["properties"]["units"]
    assert schemas["Slot"]["properties"]["version"]["type"] == "string"
    assert schemas["ReservationState"]["enum"][0] == "RESERVATION_STATE_PENDING_DEPOSIT"
    assert "oneOf" in schemas["WatchReservationResponse"]
    # Left out and zero are two things for `optional` ones, and they are none of the required ones.
    assert schemas["ModifyReservationRequest"]["required"] == ["requestId", "etag"]
    # An answer has every field, but for messages that the contract may leave unset.
    assert set(schemas["Deposit"]["properties"]) - set(schemas["Deposit"]["required"]) == {"amount"}


# --- refusals


def test_an_operation_names_the_refusals_that_its_contract_names(
    document: Json, contracts: Contracts
) -> None:
    reasons = reason_pb2.Reason.DESCRIPTOR.values_by_name
    for _, _, operation in operations(document):
        comment = methods(contracts)[operation["operationId"]].comment
        told = {
            name: status
            for status, response in responses(document, operation).items()
            if status != "200"
            for name in response["content"]["application/json"]["examples"]
        }
        for word in re.findall(r"\b[A-Z]+_[A-Z_]+\b", " ".join(comment.split("Reasons:")[1:])):
            if f"REASON_{word}" in reasons:
                assert word in told, (operation["operationId"], word)
        assert {"INVALID_ARGUMENT", "TOKEN_INVALID", "INTERNAL", "UNAVAILABLE", "TRY_AGAIN_LATER"} <= set(
            told
        )
        assert ("TOKEN_MISSING" in told) == bool(operation["security"])
        assert ("OUTCOME_UNKNOWN" in told) == ("requestBody" in operation)
        # The edge's own.
        assert {"RATE_LIMITED", "HEADERS_TOO_LARGE", "NO_ANSWER", "DEADLINE_EXCEEDED"} <= set(told)
        assert ("BODY_TOO_LARGE" in told) == ("NOT_JSON" in told) == ("requestBody" in operation)
        assert not {"NO_SUCH_METHOD", "VERB_NOT_ALLOWED"} & set(told)


def test_a_refusal_has_the_http_status_of_its_code(document: Json) -> None:
    usual = {
        "INVALID_ARGUMENT": "400",
        "FAILED_PRECONDITION": "400",
        "UNAUTHENTICATED": "401",
        "PERMISSION_DENIED": "403",
        "NOT_FOUND": "404",
        "ABORTED": "409",
        "ALREADY_EXISTS": "409",
        "RESOURCE_EXHAUSTED": "429",
        "INTERNAL": "500",
        "UNAVAILABLE": "503",
        "DEADLINE_EXCEEDED": "504",
    }
    by_the_edge = {"408", "413", "415", "431"}  # HTTP's own, which gRPC has no code for
    for _, _, operation in operations(document):
        for status, response in responses(document, operation).items():
            for reason in response["content"].get("application/json", {}).get("examples", {}):
                assert status == usual[errors.code_of(reason).name] or status in by_the_edge, reason


def test_a_refusal_that_may_be_repeated_tells_the_header_that_says_when(document: Json) -> None:
    for _, _, operation in operations(document):
        found = responses(document, operation)
        assert found["429"]["headers"]["retry-after"]
        for response in found.values():
            assert response["headers"]["x-correlation-id"]


# --- examples


def test_every_example_of_a_body_is_what_the_contract_takes(document: Json, contracts: Contracts) -> None:
    seen = set()
    for _, _, operation in operations(document):
        if "requestBody" not in operation:
            continue
        name = operation["operationId"]
        content = operation["requestBody"]["content"]["application/json"]
        validator(document, content["schema"]).validate(content["example"])
        parsed = message(methods(contracts)[name].request)
        json_format.ParseDict(content["example"], parsed)
        seen.add(name)
    assert seen == set(examples.BODIES)


def test_every_example_of_a_parameter_is_one(document: Json) -> None:
    seen = set()
    for _, _, operation in operations(document):
        for parameter in operation.get("parameters", []):
            if "example" in parameter:
                validator(document, parameter["schema"]).validate(parameter["example"])
                seen.add(parameter["name"])
            else:
                assert parameter["name"] in {"page_token", "resume_token"}
    assert seen == set(examples.PARAMETERS)


def test_every_example_of_an_answer_is_what_the_edge_prints(document: Json, contracts: Contracts) -> None:
    """Zero fields and all; so it is the same again after it went through the contract."""
    seen = set()
    for _, _, operation in operations(document):
        name = operation["operationId"]
        for content in operation["responses"]["200"]["content"].values():
            validator(document, content["schema"]).validate(content["example"])
            parsed = json_format.ParseDict(content["example"], message(methods(contracts)[name].response))
            printed = json_format.MessageToDict(parsed, always_print_fields_with_no_presence=True)
            assert printed == content["example"], name
        seen.add(name)
    assert seen == set(examples.ANSWERS)


def test_every_example_of_a_refusal_is_one(document: Json) -> None:
    assert document["components"]["examples"]
    for name, example in document["components"]["examples"].items():
        value = example["value"]
        validator(document, {"$ref": "#/components/schemas/Status"}).validate(value)
        status = json_format.ParseDict(value, status_pb2.Status())
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == name
        assert status.code == errors.code_of(name).value[0]
        assert code_pb2.Code.Name(status.code)
        assert all(info.metadata.values()), name


def test_an_example_that_breaks_its_schema_would_be_found(document: Json) -> None:
    schema = {"$ref": "#/components/schemas/CreateReservationRequest"}
    good = examples.BODIES["CreateReservation"]
    for change in (
        {"partySize": 0},
        {"partySize": "4"},
        {"requestId": "not a UUID"},
        {"dineTime": "2026-12-04"},
        {"paymentToken": ""},
        {"note": "x" * 501},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator(document, schema).validate(good | change)
    for missing in ("requestId", "dineTime"):
        with pytest.raises(jsonschema.ValidationError):
            validator(document, schema).validate({key: good[key] for key in good if key != missing})
