"""What a refused HTTP call says, read as a client of the edge would: the one shape, held to strictly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
from google.protobuf import duration_pb2

from dinemesh.error.v1 import reason_pb2

_TYPE = "type.googleapis.com/google.rpc."
_CODES = range(1, 17)


@dataclass(frozen=True)
class JsonRefused:
    """A google.rpc.Status in JSON with ErrorInfo, BadRequest and RetryInfo, and the headers beside it."""

    status: int
    """Of HTTP."""
    code: int
    """Of google.rpc.Code."""
    message: str
    domain: str
    reason: str
    fields: tuple[str, ...]
    retry_after: float | None
    """Seconds, from RetryInfo."""
    headers: dict[str, str]
    text: str

    @property
    def everything(self) -> str:
        """All that a client can see of it, to look for what it must not see."""
        return repr(self)


def json_refusal(response: httpx.Response) -> JsonRefused:
    """Reads a refusal; fails where it is not the one shape."""
    return read_refusal(response.status_code, dict(response.headers), response.content.decode())


def the_service_was_first(response: httpx.Response) -> bool:
    """Whether a deadline was noticed by the service's gRPC library, which knows no details, before the edge's
    own clock: both have the same one. Tests of what the edge says ask again then."""
    return response.status_code == 504 and response.json() == {
        "code": 4,
        "message": "Deadline Exceeded",
        "details": [],
    }


def read_refusal(status: int, headers: dict[str, str], text: str) -> JsonRefused:
    """The same, of an answer that was read some other way; names of headers in lower case."""
    where = f"{status} {headers}\n{text}"
    assert status >= 400, where
    assert headers.get("content-type", "").partition(";")[0] == "application/json", where
    said: Any = json.loads(text)
    assert isinstance(said, dict) and set(said) == {"code", "message", "details"}, where
    assert isinstance(said["code"], int) and said["code"] in _CODES, where
    assert isinstance(said["message"], str) and said["message"], where
    details: dict[str, dict[str, Any]] = {}
    for detail in said["details"]:
        kind = detail["@type"].removeprefix(_TYPE)
        assert kind in ("ErrorInfo", "BadRequest", "RetryInfo") and kind not in details, where
        details[kind] = detail
    info = details.get("ErrorInfo", {})
    assert info.get("domain") == "dinemesh", where
    known = reason_pb2.Reason.DESCRIPTOR.values_by_name.get(f"REASON_{info.get('reason')}")
    assert known is not None, where
    assert known.GetOptions().Extensions[reason_pb2.code] == said["code"], f"not the reason's code: {where}"
    retry_after = None
    if "RetryInfo" in details:
        delay = duration_pb2.Duration()
        delay.FromJsonString(details["RetryInfo"]["retryDelay"])
        retry_after = delay.ToTimedelta().total_seconds()
        assert int(headers["retry-after"]) >= max(1, int(retry_after)), where
    return JsonRefused(
        status=status,
        code=said["code"],
        message=said["message"],
        domain=info["domain"],
        reason=info["reason"],
        fields=tuple(one["field"] for one in details.get("BadRequest", {}).get("fieldViolations", ())),
        retry_after=retry_after,
        headers=headers,
        text=text,
    )
