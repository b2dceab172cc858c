"""Calls made up from the OpenAPI document, sent to a running edge by people of every role, and what must hold
of each answer.

Schemathesis makes the calls: the boundaries of every limit, values that the document allows, values that it
forbids. So that they lead somewhere, ids that are well formed are mostly exchanged for ones that exist.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema
import requests
import schemathesis
from google.protobuf import json_format
from hypothesis import HealthCheck, Phase, given, seed, settings
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig
from schemathesis.core.result import Ok

from dinemesh.kit import errors
from tests.contracts.test_openapi import ACCESS, message
from tests.support.edge import RunningEdge
from tests.support.leaks import LEAKS

Json = dict[str, Any]
Operation: TypeAlias = schemathesis.APIOperation[Any, Any, Any, Any]
Case: TypeAlias = schemathesis.Case[Any]

CALL_SECONDS = 20
WATCH_MILLISECONDS = 400
"""What a watch is given; it says EXPIRED a quarter of a second before."""
KNOWN = 0.8
"""How often an id that is well formed is exchanged for one that exists."""
MAY = 0.75
"""How often somebody calls who may."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True)
class Person:
    """Who calls: a role, or "nobody" (no token) or "stranger" (a broken one), and what their token is."""

    role: str
    token: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


@dataclass
class Found:
    """What a run has seen."""

    calls: Counter[str] = field(default_factory=Counter)
    """By operation."""
    statuses: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    """By how the call was made up."""
    violations: Counter[str] = field(default_factory=Counter)
    """Of allowed values that were refused all the same: operation, field, description."""
    faults: list[str] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)
    """Answers with 200, by operation."""

    @property
    def total(self) -> int:
        return self.calls.total()

    def __str__(self) -> str:
        server_errors = sum(times for status, times in self.statuses.items() if status >= 500)
        return (
            f"{self.total} calls of {len(self.calls)} verbs and paths, {self.taken.total()} of them taken, "
            f"by {len(self.taken)} operations\n"
            f"made up as {dict(self.made)}\n"
            f"statuses {dict(sorted(self.statuses.items()))}\n"
            f"reasons {dict(self.reasons.most_common())}\n"
            f"{server_errors} server errors, {len(self.faults)} answers that break the document's word\n"
        )


class Fuzz:
    """One run over an edge."""

    def __init__(
        self,
        edge: RunningEdge,
        people: list[Person],
        known: Mapping[str, list[Any]],
        *,
        seed: int,
        change: Callable[[Json], object] = lambda _: None,
    ) -> None:
        """`known`: values that exist, by the snake_case name of the field that they are for.

        `change` spoils the document that the edge serves.
        """
        self._edge = edge
        self._people = people
        self._known = known
        self._seed = seed
        self._random = random.Random(seed)
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(pool_maxsize=1))
        self.document: Json = self._session.get(f"{edge.url}/openapi.json", timeout=CALL_SECONDS).json()
        change(self.document)
        self.schema = schemathesis.openapi.from_dict(self.document)
        self._strict = strict(self.document)
        self._checks: list[Any] = [
            schemathesis.checks.not_a_server_error,
            schemathesis.checks.CHECKS.get_one("status_code_conformance"),
            schemathesis.checks.CHECKS.get_one("content_type_conformance"),
            schemathesis.checks.CHECKS.get_one("response_headers_conformance"),
        ]
        self.found = Found()

    def close(self) -> None:
        self._session.close()

    def operations(self) -> Iterator[Operation]:
        for one in self.schema.get_all_operations():
            assert isinstance(one, Ok), f"the document cannot be read: {one}"
            yield one.ok()

    # --- making calls up

    def boundaries(self, operation: Operation, most: int) -> None:
        """The edges of every limit, from both sides, each by itself."""
        cases = list(
            self.schema.iter_coverage_cases(
                operation,
                generation_modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE],
                generation_config=GenerationConfig(),
            )
        )
        if len(cases) > most:
            cases = self._random.sample(cases, most)
        for case in cases:
            self.call(case, "boundaries")

    def values(self, operation: Operation, mode: GenerationMode, examples: int) -> None:
        """Values that the document allows (POSITIVE), or of which one at least is forbidden (NEGATIVE)."""

        @seed(self._seed)
        @settings(
            max_examples=examples,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Case) -> None:
            self.call(case, "allowed" if mode.is_positive else "forbidden")

        run()

    # --- one call

    def call(self, case: Case, made: str) -> None:
        """Sends it as somebody, and notes whatever is wrong with the answer."""
        definition = self.document["paths"][case.path].get(case.method.lower())
        person = self._somebody(definition)
        self._make_known(case)
        correlation = f"fuzz-{self.found.total}"
        headers = {"x-correlation-id": correlation}
        streams = (
            definition is not None and "application/x-ndjson" in definition["responses"]["200"]["content"]
        )
        if streams:
            headers["grpc-timeout"] = f"{WATCH_MILLISECONDS}m"
            if self._random.random() < 0.3:
                headers["accept"] = "text/event-stream"
        sent = requests.Request(
            **case.as_transport_kwargs(base_url=self._edge.url, headers=headers)
        ).prepare()
        # Schemathesis plays with credentials too; who calls is decided here.
        sent.headers.pop("authorization", None)
        sent.headers.update(person.headers)
        answer = self._session.send(sent, timeout=CALL_SECONDS, allow_redirects=False)
        name = definition["operationId"] if definition else f"{case.method} {case.path}"
        self.found.calls[name] += 1
        self.found.made[made] += 1
        self.found.statuses[answer.status_code] += 1
        try:
            if definition is None:
                self._check_refusal(answer, self.document["components"]["schemas"], None)
                assert answer.status_code in (400, 404, 405, 413, 431), "another verb was taken"
                return
            case.validate_response(answer, checks=self._checks)
            if answer.headers.get("connection") == "close" and answer.status_code != 413:
                # Envoy could not read it as a request at all; it has no id yet. Of a body that is too large
                # it reads no more.
                assert answer.status_code in (400, 408, 431)
            else:
                assert answer.headers.get("x-correlation-id") == correlation, "the correlation id is lost"
            if answer.status_code == 200:
                self.found.taken[name] += 1
                self._check_person(definition, person)
                self._check_answer(definition, answer, streams=streams)
                self._check_accepted(definition, case, sent)
            else:
                reason = self._check_refusal(answer, definition["responses"], person)
                self.found.reasons[reason] += 1
                if made == "allowed":
                    self._note_violations(name, answer)
        except (AssertionError, jsonschema.ValidationError, schemathesis.core.failures.FailureGroup) as fault:
            body = sent.body if isinstance(sent.body, (bytes, str)) else b""
            shown = {key: value for key, value in sent.headers.items() if key != "authorization"}
            self.found.faults.append(
                f"{name} ({made}, {person.role}): {sent.method} {sent.url}\n"
                f"  sent: {shown}\n  {body[:600]!r}\n"
                f"  answered: {answer.status_code} {dict(answer.headers)}\n  {answer.text[:600]}\n"
                f"  {str(fault)[:1500]}"
            )

    def _somebody(self, definition: Json | None) -> Person:
        if definition is None or self._random.random() > MAY:
            return self._random.choice(self._people)
        roles = ACCESS[definition["operationId"]]
        return self._random.choice([one for one in self._people if one.role in roles] or self._people[:1])

    def _make_known(self, case: Case) -> None:
        for values in (case.path_parameters, case.query):
            if values:
                self._exchange(values, {name: name for name in self._known})
        if isinstance(case.body, dict):
            self._exchange(case.body, {camel(name): name for name in self._known})

    def _exchange(self, values: Any, names: Mapping[str, str]) -> None:
        for key, name in names.items():
            value = values.get(key)
            replaceable = (
                (isinstance(value, str) and (_UUID.fullmatch(value) or (name in PLAIN and len(value) > 0)))
                or (name == "revision" and isinstance(value, int))
                or (name in DAYS and is_day(value))
            )
            if replaceable and self._random.random() < KNOWN:
                values[key] = self._random.choice(self._known[name])

    # --- what must hold

    def _check_person(self, definition: Json, person: Person) -> None:
        if definition["security"]:
            assert person.role not in ("nobody", "stranger", "service"), "taken without a token that may"

    def _check_answer(self, definition: Json, answer: requests.Response, *, streams: bool) -> None:
        content_type = answer.headers["content-type"].partition(";")[0]
        schema = definition["responses"]["200"]["content"][content_type]["schema"]
        if not streams:
            self._validate(schema, answer.json())
            return
        messages = [json.loads(one) for one in parts(content_type, answer.text)]
        assert messages, "an empty stream"
        for one in messages:
            self._validate(schema, one)
        assert "end" in messages[-1], "a stream without an end"
        assert not any("end" in one for one in messages[:-1])

    def _check_refusal(self, answer: requests.Response, responses: Json, person: Person | None) -> str:
        assert answer.headers["content-type"].partition(";")[0] == "application/json", "not JSON"
        said = answer.json()
        self._validate({"$ref": "#/components/schemas/Status"}, said)
        kinds = [one["@type"].rpartition(".")[2] for one in said["details"]]
        assert kinds.count("ErrorInfo") == 1 and len(kinds) == len(set(kinds)), "details"
        reason: str = said["details"][kinds.index("ErrorInfo")]["reason"]
        assert ("RetryInfo" in kinds) == ("retry-after" in answer.headers), "retry-after and RetryInfo"
        assert errors.code_of(reason).value[0] == said["code"], "the code of another reason"
        assert not LEAKS.search(answer.text), f"leaks {LEAKS.search(answer.text)}"
        if person is not None:
            assert str(answer.status_code) in responses, f"{answer.status_code} {reason} is not documented"
            response = responses[str(answer.status_code)]
            if "$ref" in response:
                response = self.document["components"]["responses"][response["$ref"].rpartition("/")[2]]
            assert reason in response["content"]["application/json"]["examples"], (
                f"{reason} is not documented"
            )
        return reason

    def _check_accepted(self, definition: Json, case: Case, sent: requests.PreparedRequest) -> None:
        """What was taken is what the document allows, once it is read as the JSON mapping of proto3 reads it.

        (A number may come as a string, an enum as its number, a name in snake_case, null for nothing.)
        """
        url = urlsplit(str(sent.url))
        query = parse_qs(url.query, keep_blank_values=True)
        pattern = re.compile(
            re.sub(r"{(\w+)}", r"(?P<\1>.+?)", re.escape(case.path).replace(r"\{", "{").replace(r"\}", "}"))
        )
        place = pattern.fullmatch(url.path)
        assert place is not None, f"{url.path} is not {case.path}"
        for parameter in definition.get("parameters", []):
            name, schema = parameter["name"], parameter["schema"]
            if parameter["in"] == "path":
                self._validate(schema, unquote(place[name]))
                continue
            given = query.get(name, query.get(camel(name), []))
            if schema.get("type") == "array":
                self._validate(schema, [self._read(one, schema["items"]) for one in given])
            elif given and given[-1] != "":
                self._validate(schema, self._read(given[-1], schema))
            else:
                assert not parameter.get("required"), f"{name} is missing"
        if "requestBody" in definition:
            schema = definition["requestBody"]["content"]["application/json"]["schema"]
            request = message(f"{PACKAGES[definition['tags'][0]]}.{definition['operationId']}Request")
            body = sent.body
            assert body is None or isinstance(body, (bytes, str))
            given = json.loads(body or b"null")
            try:
                # null counts as no body (tests/edge/test_bad_http_requests.py).
                json_format.ParseDict({} if given is None else given, request)
            except json_format.ParseError as error:
                raise AssertionError(f"taken, though it is no JSON of the request: {error}") from None
            self._validate(schema, json_format.MessageToDict(request))

    def _read(self, text: str, schema: Json) -> object:
        if schema.get("type") == "integer":
            try:
                return int(float(text))
            except ValueError:
                return text
        return text

    def _validate(self, schema: Json, value: object) -> None:
        """Against the document; answers must not have a field that it does not know."""
        jsonschema.Draft202012Validator(
            {**schema, "components": self._strict},
            format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
        ).validate(value)

    def _note_violations(self, name: str, answer: requests.Response) -> None:
        for detail in answer.json()["details"]:
            for one in detail.get("fieldViolations", []):
                self.found.violations[f"{name}: {one['field']}: {one['description']}"] += 1


PLAIN = {"dine_time", "etag", "policy_etag", "payment_token", "date", "time_zone", "currency_code"}
"""Fields whose values are exchanged though they are no ids."""

DAYS = {"first_date", "last_date"}
"""The same of days in parts: almost none that is made up is one of the next."""


def is_day(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"year", "month", "day"}
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value.values())
    )


PACKAGES = {
    "ReservationService": "dinemesh.reservation.v1",
    "RestaurantService": "dinemesh.restaurant.v1",
    "DepositService": "dinemesh.deposit.v1",
    "HistoryService": "dinemesh.history.v1",
}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(one.capitalize() for one in rest)


def strict(document: Json) -> Json:
    """The components, with schemas that allow no field that they do not name."""
    components: Json = json.loads(json.dumps(document["components"]))
    for schema in components["schemas"].values():
        if schema.get("type") == "object":
            schema["additionalProperties"] = False
    return components


def parts(content_type: str, text: str) -> list[str]:
    """The messages of a stream."""
    if content_type == "text/event-stream":
        return [one.removeprefix("data:") for one in text.splitlines() if one.startswith("data:")]
    return [one for one in text.splitlines() if one]
