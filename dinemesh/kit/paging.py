"""Pages of a list (AIP-158): an opaque token says where the next page starts."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from dinemesh.kit.refusal import invalid

_MAX_TOKEN = 2048  # a token holds one position; what is longer was not made here


def page_size(asked: int, default: int, maximum: int, field: str = "page_size") -> int:
    """How many to return: the default for 0, never more than the maximum."""
    if asked < 0:
        raise invalid(field, "must not be negative")
    return min(asked or default, maximum)


def encode_token(position: Mapping[str, Any]) -> str:
    """The position (JSON values) as a token. It is not secret and not signed: check what it leads to."""
    packed = json.dumps(position, separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(packed.encode()).decode().rstrip("=")


def decode_token(token: str, field: str = "page_token") -> dict[str, Any]:
    """The position in a token, {} for the empty token; anything that was not made here is refused."""
    if not token:
        return {}
    try:
        if len(token) > _MAX_TOKEN:
            raise ValueError("too long")
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        position = json.loads(packed)
        if not isinstance(position, dict) or encode_token(position) != token:
            raise ValueError("not a position")
    except (ValueError, binascii.Error, RecursionError):
        raise invalid(field, "is not a token of this list") from None
    return position


def position(token: str, *, field: str = "page_token", **types: type[Any]) -> dict[str, Any] | None:
    """The position in a token, None for the first page. Refuses other fields than these, or other types."""
    if not token:
        return None
    values = decode_token(token, field)
    if {name: type(value) for name, value in values.items()} != types:
        raise invalid(field, "is not a token of this list")
    return values
