"""Refusals on the wire: a google.rpc.Status with ErrorInfo, BadRequest and RetryInfo, there and back.

The status code comes from the option of the reason in dinemesh.error.v1; it is named nowhere else.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from dinemesh.error.v1 import reason_pb2
from dinemesh.kit.refusal import Refusal

DOMAIN = "dinemesh"
_PREFIX = "REASON_"
_DETAILS_KEY = "grpc-status-details-bin"

# A client drops a reply whose metadata exceed 8 KiB, and the text travels twice: in the status and beside it.
_MAX_MESSAGE = 500
_MAX_DETAILS = 3_000

# Whoever was refused at one moment must not come back at one moment: a quarter later, or some seconds.
_SPREAD = 0.25
_MOST_SPREAD_SECONDS = 5.0

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _Status(NamedTuple):
    """What abort_with_status asks of a grpc.Status."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


@functools.cache
def code_of(reason: str) -> grpc.StatusCode:
    """The status code that a reason is answered with. Raises ValueError for one that the contract lacks."""
    value = reason_pb2.Reason.DESCRIPTOR.values_by_name.get(_PREFIX + reason)
    if value is None:
        raise ValueError(f"{reason} is not a reason in dinemesh.error.v1")
    return _GRPC_CODES[value.GetOptions().Extensions[reason_pb2.code]]


def spread(seconds: float) -> float:
    """A retry time as it is told, in seconds: a little later than meant, each time another one."""
    return seconds + random.uniform(0, min(seconds * _SPREAD, _MOST_SPREAD_SECONDS))


def to_status(refusal: Refusal, retry_after: float | None = None) -> status_pb2.Status:
    """The refusal as google.rpc.Status, with `retry_after` seconds instead of its own if given; long lists of
    violations are cut so that the reply arrives."""
    retry_after = refusal.retry_after if retry_after is None else retry_after
    status = status_pb2.Status(
        code=code_of(refusal.reason).value[0], message=_cut(refusal.message, _MAX_MESSAGE)
    )
    _pack(
        status,
        error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=dict(refusal.metadata)),
    )
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(_milliseconds(retry_after))
        _pack(status, retry)
    if refusal.violations:
        bad = error_details_pb2.BadRequest()
        for one in refusal.violations:
            if status.ByteSize() + bad.ByteSize() > _MAX_DETAILS - 2 * _MAX_MESSAGE:
                break
            bad.field_violations.add(
                field=_cut(one.field, 200), description=_cut(one.description, _MAX_MESSAGE)
            )
        _pack(status, bad)
    return status


async def abort(
    context: grpc.aio.ServicerContext[object, object],
    refusal: Refusal,
    trailing: tuple[tuple[str, str], ...] = (),
) -> NoReturn:
    """Ends the call with the refusal, all of it in trailing metadata.

    Only an abort before any initial metadata gives a trailers-only reply, which is what proxies look at. The
    retry time stands there three times: RetryInfo for our clients, `retry-after` (whole seconds) for HTTP,
    and `grpc-retry-pushback-ms` for gRPC libraries that retry by themselves.
    """
    retry_after = None if refusal.retry_after is None else spread(refusal.retry_after)
    rich = to_status(refusal, retry_after)
    metadata: list[tuple[str, str | bytes]] = [*trailing, (_DETAILS_KEY, rich.SerializeToString())]
    if retry_after is not None:
        milliseconds = _milliseconds(retry_after)
        metadata.append(("retry-after", str(max(1, math.ceil(milliseconds / 1000)))))
        metadata.append(("grpc-retry-pushback-ms", str(milliseconds)))
    await context.abort_with_status(_Status(_GRPC_CODES[rich.code], rich.message, tuple(metadata)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class RemoteRefusal:
    """What another service answered. `reason` is "" when it is not one of ours (a proxy's, for example).

    `overloaded`: a proxy refused the call before it reached the service (`x-envoy-overloaded`). Beside words
    of the service itself, which it has reached then, the header counts for nothing.
    """

    code: grpc.StatusCode
    reason: str
    message: str = ""
    retry_after: float | None = None
    overloaded: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


def from_call(error: grpc.RpcError) -> RemoteRefusal | None:
    """What the other side said; None when it said nothing that can be relied on: the outcome is unknown."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return None
    trailing = dict(error.trailing_metadata() or ())
    overloaded = str(trailing.get("x-envoy-overloaded", "")).lower() == "true"
    status, info, retry_after = _unpack(trailing.get(_DETAILS_KEY))
    if status is None or info is None or info.domain != DOMAIN:
        return RemoteRefusal(error.code(), "", overloaded=True) if overloaded else None
    return RemoteRefusal(
        code=error.code(),
        reason=info.reason,
        message=status.message,
        retry_after=retry_after,
        metadata=dict(info.metadata),
    )


def _unpack(
    raw: object,
) -> tuple[status_pb2.Status | None, error_details_pb2.ErrorInfo | None, float | None]:
    if not isinstance(raw, bytes):
        return None, None, None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    try:
        status = status_pb2.Status.FromString(raw)
        found_info = any(detail.Unpack(info) for detail in status.details)
        found_retry = any(detail.Unpack(retry) for detail in status.details)
    except DecodeError:
        return None, None, None
    return (
        status,
        info if found_info else None,
        retry.retry_delay.ToMilliseconds() / 1000 if found_retry else None,
    )


def _pack(status: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
