"""What the edge refuses by itself, in the form and with the details of the services' own refusals."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.rpc import status_pb2

from dinemesh.kit import errors
from dinemesh.kit.refusal import Refusal, Violation


def mappers(
    *,
    when: str,
    status: int,
    reason: str,
    message: str,
    retry_seconds: float | None = None,
    spread_seconds: float = 0,
    field: str = "",
    description: str = "",
) -> list[object]:
    """ResponseMappers of one refusal: for gRPC and gRPC-Web, and for everything else.

    `when`: an expression in CEL. `message` may use Envoy's %COMMANDS%, and is then told to JSON clients
    only; they alone are told, too, which `field` is wrong and what is (`description`). With
    `spread_seconds`, the time after which to come again is longer by a part of it that depends on the call.
    """
    if spread_seconds:
        assert retry_seconds is not None
        spread: list[object] = []
        for at, digits in enumerate(_LAST_DIGITS):
            spread += mappers(
                when=f"({when}) && request.id.matches('{digits}$')",
                status=status,
                reason=reason,
                message=message,
                retry_seconds=retry_seconds + at * spread_seconds / len(_LAST_DIGITS),
                field=field,
                description=description,
            )
        return spread
    wrong = [Violation(field, description)] if field else []
    told = errors.to_status(Refusal(reason, message, violations=wrong, retry_after=retry_seconds))
    plain = message if "%" not in message else ""
    details = errors.to_status(Refusal(reason, plain, retry_after=retry_seconds)).SerializeToString()
    # Base64 without the padding, as gRPC sends binary metadata.
    headers = {"grpc-status-details-bin": base64.b64encode(details).decode().rstrip("=")}
    retry: dict[str, str] = {}
    if retry_seconds is not None:
        retry = {"retry-after": str(math.ceil(retry_seconds))}
        headers |= retry | {"grpc-retry-pushback-ms": str(round(retry_seconds * 1000))}
    return [
        {
            "filter": _cel(f"{_GRPC} && ({when})"),
            "status_code": 200,  # as gRPC has it; without this, gRPC-Web would not
            "headers_to_add": _CORRELATION + _headers(headers | {"grpc-status": str(told.code)}),
            "body_format_override": {"text_format_source": {"inline_string": plain or "%LOCAL_REPLY_BODY%"}},
        },
        {
            "filter": _cel(when),
            "status_code": status,
            "headers_to_add": _CORRELATION + _headers(retry | {"grpc-status": str(told.code)}),
            "body_format_override": {"json_format": _json(told)},
        },
    ]


_LAST_DIGITS = ("[01]", "[23]", "[45]", "[67]", "[89]", "[ab]", "[cd]", "([ef]|)")
"""Of the id of a request, which is drawn by chance; Envoy can draw nothing else here. One without an id has
the last of them."""

# A call that was JSON until the transcoder got it has kept its path in the header.
_GRPC = (
    "'content-type' in request.headers"
    " && request.headers['content-type'].matches('^application/grpc(-web|-web-text)?([+;].*)?$')"
    " && !('x-envoy-original-path' in request.headers)"
)


def _cel(expression: str) -> dict[str, object]:
    kind = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    config = {"@type": f"type.googleapis.com/{kind}", "expression": " ".join(expression.split())}
    return {"extension_filter": {"name": "cel", "typed_config": config}}


def _headers(headers: Mapping[str, str]) -> list[object]:
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]


# For what is refused before any filter (correlation.yaml) has seen it: the client's id if it has the form,
# else a new one. That filter puts its own in the place of it.
_CORRELATION = [
    {
        "header": {
            "key": "x-correlation-id",
            "value": "%CEL('x-correlation-id' in request.headers"
            " && request.headers['x-correlation-id'].matches('^[A-Za-z0-9._:/+=-]+$')"
            " && request.headers['x-correlation-id'].size() <= 128"
            " ? request.headers['x-correlation-id'] : '')%",
        },
        "append_action": "ADD_IF_ABSENT",
    },
    {"header": {"key": "x-correlation-id", "value": "%UNIQUE_ID%"}, "append_action": "ADD_IF_ABSENT"},
]


def _json(status: status_pb2.Status) -> Any:
    """As the transcoder writes it."""
    return json.loads(json_format.MessageToJson(status, always_print_fields_with_no_presence=True))
