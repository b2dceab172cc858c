"""The document: what HTTP clients can call at the edge, in OpenAPI 3.1.

Everything stands in the contracts and is only put into another form here: paths and verbs from
`google.api.http`, texts from comments, limits from fixed phrases in comments (rules.py), reasons from the
words after "Reasons:", their status from dinemesh.error.v1. Only the examples are added (examples.py).
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from protos.generate import ROOT
from protos.openapi import common, examples
from protos.openapi.contracts import Contracts, Enum, Field, Message, Method, Service, Value, code_name
from protos.openapi.rules import is_required, is_used, limits

Json = dict[str, Any]

READING_ORDER = ("ReservationService", "RestaurantService", "DepositService", "HistoryService")
"""As a reader meets them; a service that is not named here is refused."""

JSON = "application/json"
LINES = "application/x-ndjson"
EVENTS = "text/event-stream"

TOKEN = "token"
_SCHEMAS = "#/components/schemas/"
_PATH_FIELD = re.compile(r"{(\w+)}")
_WORD = re.compile(r"\b[A-Z]+(?:_[A-Z]+)*\b")
_ANYONE = "For anyone, without a token."
_SOMETIMES = re.compile(r"\b(?:Unset|Set from|set in the state)\b")
# Reasons from this number on are the edge's own (reason.proto). No operation has the first two, for they say
# that there is none; the second two need a body.
_EDGE_NUMBER = 50
_OF_NO_OPERATION = frozenset({"NO_SUCH_METHOD", "VERB_NOT_ALLOWED"})
_WITH_BODY = frozenset({"BODY_TOO_LARGE", "NOT_JSON"})
_HTTP = re.compile(r"\bHTTP (\d{3})\b")
# Of a request: what else there is in a body is refused. An answer may have more tomorrow.
_NOTHING_MORE: Json = {"additionalProperties": False}
_METADATA = re.compile(r'ErrorInfo\.metadata\["(\w+)"\]')

DESCRIPTION = """\
A restaurant takes a deposit so that people who book also come. This is the system behind it: reservations,
deposits, restaurants and their bookings, and the timeline of everything that happened.

The same calls are there as gRPC and gRPC-Web on the same port; this document is made from their contracts.

**Names.** JSON has the names of the contract in lowerCamelCase (`requestId`); parameters of the query, and
the texts here, have them in snake_case (`request_id`).

**JSON.** The mapping of proto3: 64-bit integers are strings, enums are names, times are RFC 3339 in UTC.
Answers have every field that is not a message, zero or not. A field of a body that is `null` counts as left
out (in a list, as an empty object), and a field that this document does not know is dropped without a word:
a misspelt optional field is not noticed. Unknown parameters of the query are refused.

**Tokens.** `Authorization: Bearer <JWT>`, ES256, with the claims `sub`, `role` (customer, staff, operator)
and, for staff, `restaurant_id`. Calls for anyone need none, but a broken token is refused there too. What
belongs to someone else is NOT_FOUND.

**Refusals.** Whatever is not 200 is a `Status`: an ErrorInfo with the reason to decide by, BadRequest with
the fields that are wrong, RetryInfo (and the header `retry-after`) when a repetition makes sense.

**Bodies.** A body is one JSON object with the fields of its request, each at most once; names in snake_case
and null for a field that is left out will do. One with another field, or with a list or an object where there
is none, is refused as a whole, and the BadRequest names the field.

**Repeating.** Calls with a `request_id` never act twice for the same one: after a lost connection, 503 or
504, repeat with the same `request_id`. Whether the change was made is not known before.

**Deadlines.** A call has ten seconds. The header `grpc-timeout` (`2S`, `500m` for milliseconds) asks for less
or for more, up to thirty; a watch has none.

**Watches.** An answer that goes on: one JSON message a line (`application/x-ndjson`), or server-sent events
with one message in each `data` for `Accept: text/event-stream`. The last message is an `end`; a stream that
breaks off without one is broken, call again.

**Correlation.** Every answer has `x-correlation-id`, the client's own or a new one; it is in all logs and
events.
"""


def document(contracts: Contracts) -> Json:
    """The whole document, ready for JSON."""
    services = {one.short_name: one for one in contracts.services}
    if set(services) != set(READING_ORDER):
        raise ValueError(f"READING_ORDER does not name {sorted(set(services) ^ set(READING_ORDER))}")
    ordered = [services[name] for name in READING_ORDER]
    schemas = Schemas(contracts)
    refusals = Refusals(contracts, ordered)
    paths: Json = {}
    for service in ordered:
        for method in service.methods:
            paths.setdefault(method.path, {})[method.verb] = operation(
                contracts, schemas, refusals, service, method
            )
    add_links(paths, contracts, ordered)
    found = schemas.components | common.refusal(sorted(refusals.used | _OF_NO_OPERATION))
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Dinemesh",
            "summary": "Restaurant reservations with a deposit",
            "description": DESCRIPTION,
            "version": _version(),
        },
        "servers": [{"url": "/", "description": "The edge that this document came from."}],
        "tags": [{"name": one.short_name, "description": one.comment} for one in ordered],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(found.items())),
            "responses": refusals.components(),
            "examples": {name: refusals.example(name) for name in sorted(refusals.used)},
            "headers": HEADERS,
            "securitySchemes": {
                TOKEN: {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "On one machine `make token SUB=alice ROLE=customer` prints one.",
                }
            },
        },
    }


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


HEADERS: Json = {
    "CorrelationId": {
        "description": "Names this call in all logs and events: what the client sent, or a new one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
        "example": examples.CORRELATION_ID,
    },
    "RetryAfter": {
        "description": "Whole seconds to wait before the next try.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 1,
    },
}
_CORRELATION: Json = {"x-correlation-id": {"$ref": "#/components/headers/CorrelationId"}}


# --- schemas


class Schemas:
    """Schemas of messages and enums, collected as they are used.

    What stands inside of a request has another form than in an answer (an answer has every field), and
    another name: <Message>Input.
    """

    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self.components: Json = {"Uuid": common.UUID}
        self._sources: dict[str, str] = {"Uuid": ""}

    def body(self, message: Message, without: set[str]) -> Json:
        """Of a request, without the fields that the path takes."""
        fields = [one for one in message.fields if one.name not in without]
        return self._keep(message.short_name, message.name, self._object(message, fields, asked=True))

    def answer(self, name: str) -> Json:
        return self._reference(name, asked=False)

    def parameter(self, field: Field) -> Json:
        return self._field(field, asked=True)

    def _reference(self, name: str, *, asked: bool) -> Json:
        if name in self._contracts.enums:
            enum = self._contracts.enums[name]
            return self._keep(enum.short_name, name, _enum(enum))
        short = name.rpartition(".")[2]
        return self._keep(f"{short}Input" if asked else short, name, self._message(name, asked=asked))

    def _message(self, name: str, *, asked: bool) -> Json:
        table = common.ASKED if asked else common.ANSWERED
        if name in table:
            return table[name] | (_NOTHING_MORE if asked else {})
        message = self._contracts.messages[name]
        return self._object(message, list(message.fields), asked=asked)

    def _object(self, message: Message, fields: list[Field], *, asked: bool) -> Json:
        schema: Json = {"type": "object", "description": message.comment}
        if asked:
            schema |= _NOTHING_MORE
        schema["properties"] = {one.json_name: self._field(one, asked=asked) for one in fields}
        always = [one.json_name for one in fields if (is_required(one) if asked else _is_always_there(one))]
        if always:
            schema["required"] = always
        choices: dict[str, list[Json]] = defaultdict(list)
        for one in fields:
            if one.oneof:
                choices[one.oneof].append({"required": [one.json_name]})
        if len(choices) > 1:
            raise NotImplementedError(f"{message.name}: two oneofs in a message")
        for choice in choices.values():
            schema["oneOf"] = choice
        return schema

    def _field(self, field: Field, *, asked: bool) -> Json:
        schema = self._type(field, asked=asked)
        said = limits(field)
        if field.repeated:
            return {"type": "array", "items": schema, **said, "description": field.comment}
        if "$ref" in said:
            return {**said, "description": field.comment}
        if schema.get("format") == "int64":
            said = {}  # numbers cannot bound a string
        return {**schema, **said, "description": field.comment}

    def _type(self, field: Field, *, asked: bool) -> Json:
        match field.type:
            case "string":
                return {"type": "string"}
            case "bool":
                return {"type": "boolean"}
            case "int32":
                return {"type": "integer", "format": "int32"} | ({"maximum": 2**31 - 1} if asked else {})
            case "int64":
                return dict(common.INT64)
            case "google.protobuf.Timestamp":
                return dict(common.TIMESTAMP)
            case name:
                return self._reference(name, asked=asked)

    def _keep(self, short: str, source: str, schema: Json) -> Json:
        if self._sources.setdefault(short, source) != source or self.components.get(short, schema) != schema:
            raise ValueError(f"two schemas would be called {short}")
        self.components[short] = schema
        return {"$ref": _SCHEMAS + short}


def _enum(enum: Enum) -> Json:
    used = [one for one in enum.values if is_used(one)]
    told = "\n".join(f"- `{one.name}`: {one.comment}" for one in used)
    return {"type": "string", "enum": [one.name for one in used], "description": f"{enum.comment}\n\n{told}"}


def _is_always_there(field: Field) -> bool:
    """Whether every answer has the field: printed even if zero, or a message that is never left unset."""
    if field.oneof or field.optional:
        return False
    if field.repeated or "." not in field.type:
        return True
    return not _SOMETIMES.search(field.comment)


# --- operations


def operation(
    contracts: Contracts, schemas: Schemas, refusals: Refusals, service: Service, method: Method
) -> Json:
    request = contracts.messages[method.request]
    in_path = set(_PATH_FIELD.findall(method.path))
    summary, description = _told(method.comment)
    made: Json = {
        "operationId": method.name,
        "tags": [service.short_name],
        "summary": summary,
        "description": description,
        "security": [] if is_for_anyone(method) else [{TOKEN: []}],
    }
    parameters = [_parameter(schemas, one, "path") for one in request.fields if one.name in in_path]
    if not method.body:
        parameters += [_parameter(schemas, one, "query") for one in request.fields if one.name not in in_path]
    if parameters:
        made["parameters"] = parameters
    if method.body:
        body = schemas.body(request, in_path)
        has_fields = len(in_path) < len(request.fields)
        made["requestBody"] = {
            "description": request.comment
            if has_fields
            else f"{request.comment} Nothing more is to be said: `{{}}`.",
            "required": has_fields,
            "content": {JSON: {"schema": body, "example": examples.BODIES[method.name]}},
        }
    made["responses"] = {"200": _answer(contracts, schemas, method), **refusals.of(service, method)}
    return made


def is_for_anyone(method: Method) -> bool:
    return _ANYONE in method.comment


def _told(comment: str) -> tuple[str, str]:
    """The first sentence, without its full stop, and the whole."""
    first = re.split(r"(?<=\.)\s", comment, maxsplit=1)[0]
    return first.removesuffix("."), comment


def _parameter(schemas: Schemas, field: Field, place: str) -> Json:
    schema = schemas.parameter(field)
    made: Json = {"name": field.name, "in": place, "description": schema.pop("description")}
    if place == "path" or is_required(field):
        made["required"] = True
    made["schema"] = schema
    if field.name in examples.PARAMETERS:
        made["example"] = examples.PARAMETERS[field.name]
    return made


def _answer(contracts: Contracts, schemas: Schemas, method: Method) -> Json:
    schema = schemas.answer(method.response)
    message = contracts.messages[method.response]
    example = examples.ANSWERS[method.name]
    content = {JSON: {"schema": schema, "example": example}}
    description = message.comment
    if method.streams:
        description = "A stream, as long as the watch lasts; the schema is that of one message."
        content = {
            LINES: {"schema": schema, "example": example},
            EVENTS: {"schema": schema, "example": example},
        }
    return {"description": description, "headers": _CORRELATION, "content": content}


# --- refusals


class Refusals:
    """The answers that are not 200. What most operations share for a status stands in the components."""

    def __init__(self, contracts: Contracts, services: list[Service]) -> None:
        self._reasons = {
            one.name.removeprefix("REASON_"): one
            for one in contracts.enums["dinemesh.error.v1.Reason"].values
        }
        self._by_method = {
            method.name: self._statuses(service, method) for service in services for method in service.methods
        }
        every = Counter(
            (status, names) for statuses in self._by_method.values() for status, names in statuses.items()
        )
        self._shared: dict[int, tuple[str, ...]] = {}
        for (status, names), times in sorted(every.items(), key=lambda one: (-one[1], one[0])):
            if times > 1:
                self._shared.setdefault(status, names)
        self.used = {
            name for statuses in self._by_method.values() for names in statuses.values() for name in names
        }

    def of(self, service: Service, method: Method) -> Json:
        return {
            str(status): (
                {"$ref": f"#/components/responses/{_response_name(status)}"}
                if self._shared.get(status) == names
                else self._response(names)
            )
            for status, names in self._by_method[method.name].items()
        }

    def components(self) -> Json:
        return {
            _response_name(status): self._response(names) for status, names in sorted(self._shared.items())
        }

    def example(self, name: str) -> Json:
        """A refusal for that reason, as the edge prints it."""
        reason = self._reasons[name]
        info: Json = {"@type": f"{common.DETAIL_URL}ErrorInfo", "reason": name, "domain": "dinemesh"}
        info["metadata"] = {key: examples.METADATA[key] for key in _METADATA.findall(reason.comment)}
        details = [info]
        if name == "INVALID_ARGUMENT":
            details.append(
                {"@type": f"{common.DETAIL_URL}BadRequest", "fieldViolations": [examples.VIOLATION]}
            )
        if may_come_with_retry(reason):
            details.append({"@type": f"{common.DETAIL_URL}RetryInfo", "retryDelay": "1s"})
        message = _told(reason.comment)[0]
        return {
            "summary": message,
            "description": reason.comment,
            "value": {"code": reason.code, "message": message, "details": details},
        }

    def _statuses(self, service: Service, method: Method) -> dict[int, tuple[str, ...]]:
        found: dict[int, list[str]] = defaultdict(list)
        for name in self._names(service, method):
            found[http_status(self._reasons[name])].append(name)
        return {status: tuple(names) for status, names in sorted(found.items())}

    def _names(self, service: Service, method: Method) -> Iterator[str]:
        """The reasons of an RPC: its own, those of every call of the service, those of the edge."""
        own = " ".join(method.comment.split("Reasons:")[1:])
        general = service.comment
        if method.verb == "get":
            general = general.replace("OUTCOME_UNKNOWN (changes only)", "")
        if is_for_anyone(method):
            general = general.replace("TOKEN_MISSING", "")
        said = set(_WORD.findall(f"{own} {general}"))
        for name, reason in self._reasons.items():
            by_the_edge = reason.number >= _EDGE_NUMBER and name not in _OF_NO_OPERATION
            if name in _WITH_BODY and not method.body:
                continue
            if name in said or by_the_edge:
                yield name

    def _response(self, names: tuple[str, ...]) -> Json:
        reasons = [self._reasons[name] for name in names]
        told = [
            f"- `{name}`: {_told(reason.comment)[0]}." for name, reason in zip(names, reasons, strict=True)
        ]
        headers = dict(_CORRELATION)
        if any(may_come_with_retry(reason) for reason in reasons):
            headers["retry-after"] = {"$ref": "#/components/headers/RetryAfter"}
        return {
            "description": "\n".join(told),
            "headers": headers,
            "content": {
                JSON: {
                    "schema": {"$ref": f"{_SCHEMAS}Status"},
                    "examples": {name: {"$ref": f"#/components/examples/{name}"} for name in names},
                }
            },
        }


def may_come_with_retry(reason: Value) -> bool:
    return "RetryInfo" in reason.comment


def http_status(reason: Value) -> int:
    """What the reason says itself (HTTP 413), else what its code means in HTTP."""
    said = _HTTP.search(reason.comment)
    return int(said[1]) if said else common.HTTP_STATUS[code_name(reason.code)]


def _response_name(status: int) -> str:
    return {
        400: "BadRequest",
        401: "Unauthorized",
        403: "Forbidden",
        404: "NotFound",
        405: "MethodNotAllowed",
        408: "RequestTimeout",
        409: "Conflict",
        413: "ContentTooLarge",
        415: "UnsupportedMediaType",
        429: "TooManyRequests",
        431: "RequestHeaderFieldsTooLarge",
        500: "InternalServerError",
        503: "ServiceUnavailable",
        504: "GatewayTimeout",
    }[status]


# --- links


def add_links(paths: Json, contracts: Contracts, services: list[Service]) -> None:
    """From what a call creates to the calls that its ids lead to."""
    methods = [method for service in services for method in service.methods]
    for maker in methods:
        if not maker.body or _PATH_FIELD.search(maker.path):
            continue
        (resource,) = contracts.messages[maker.response].fields
        fields = contracts.messages[resource.type].fields
        ids = {one.name: one.json_name for one in fields if one.name.endswith("_id")}
        new = fields[0].name
        links = {
            target.name: {
                "operationId": target.name,
                "parameters": {
                    name: f"$response.body#/{resource.json_name}/{ids[name]}"
                    for name in _PATH_FIELD.findall(target.path)
                },
            }
            for target in methods
            if new in (wanted := set(_PATH_FIELD.findall(target.path))) and wanted <= set(ids)
        }
        paths[maker.path][maker.verb]["responses"]["200"]["links"] = links
