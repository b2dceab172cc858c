"""What a refused call says, read as a client would read it."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class Refused:
    """A refusal: status code, ErrorInfo, BadRequest, RetryInfo and trailing metadata."""

    code: grpc.StatusCode
    message: str
    domain: str
    reason: str
    fields: tuple[str, ...]
    retry_after: float | None
    """Seconds, from RetryInfo."""
    info: dict[str, str]
    """ErrorInfo.metadata."""
    trailing: dict[str, str | bytes]

    @property
    def everything(self) -> str:
        """All that a client can see of it, to look for what it must not see."""
        return repr(self)


def refusal(error: grpc.RpcError) -> Refused:
    """Decodes `error`; a part that was not sent is empty."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    trailing = {str(key): value for key, value in error.trailing_metadata() or ()}
    status = status_pb2.Status()
    rich = trailing.get("grpc-status-details-bin")
    if isinstance(rich, bytes):
        status.ParseFromString(rich)
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None
    for detail in status.details:
        wait = error_details_pb2.RetryInfo()
        if not detail.Unpack(info) and not detail.Unpack(bad) and detail.Unpack(wait):
            retry = wait.retry_delay.ToTimedelta().total_seconds()
    return Refused(
        error.code(),
        error.details() or "",
        info.domain,
        info.reason,
        tuple(violation.field for violation in bad.field_violations),
        retry,
        dict(info.metadata),
        trailing,
    )


async def refused(call: Awaitable[object]) -> Refused:
    """The refusal with which `call` ends; fails if it is answered."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refusal(error)
    raise AssertionError(f"this should have been refused, and was answered: {answer}")
