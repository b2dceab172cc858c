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
    field: str = "",
    description: str = "",
) -> list[object]:
    """Two ResponseMappers of one refusal: for gRPC and gRPC-Web, and for everything else.

    `when`: an expression in CEL. `message` may use Envoy's %COMMANDS%, and is then told to JSON clients only;
    they alone are told, too, which `field` is wrong and what is (`description`).
    """
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
            "headers_to_add": _headers(headers | {"grpc-status": str(told.code)}),
            "body_format_override": {"text_format_source": {"inline_string": plain or "%LOCAL_REPLY_BODY%"}},
        },
        {
            "filter": _cel(when),
            "status_code": status,
            "headers_to_add": _headers(retry | {"grpc-status": str(told.code)}),
            "body_format_override": {"json_format": _json(told)},
        },
    ]


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


def _json(status: status_pb2.Status) -> Any:
    """As the transcoder writes it."""
    return json.loads(json_format.MessageToJson(status, always_print_fields_with_no_presence=True))
