"""What a charge does, chosen by its payment token (the table stands in sandbox.proto)."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_DELAY_MS = 600_000
_SLOW = re.compile(r"tok_slow_([0-9]{1,6})", re.ASCII)
_DECLINED = re.compile(r"tok_chargeDeclined([A-Z][A-Za-z]*)?", re.ASCII)


@dataclass(frozen=True)
class Behaviour:
    """A charge is captured at once and answered, unless a field says otherwise."""

    decline_code: str = ""
    delay_seconds: float = 0.0
    answers: bool = True
    available: bool = True
    refunds_blocked: bool = False


def behaviour(token: str) -> Behaviour:
    """How a charge with this token goes."""
    if token == "tok_visa":
        return Behaviour()
    if token == "tok_refundFail":
        return Behaviour(refunds_blocked=True)
    if token == "tok_lostReply":
        return Behaviour(answers=False)
    if token == "tok_unavailable":
        return Behaviour(available=False)
    if slow := _SLOW.fullmatch(token):
        return Behaviour(delay_seconds=min(int(slow[1]), MAX_DELAY_MS) / 1000)
    if declined := _DECLINED.fullmatch(token):
        return Behaviour(decline_code=_snake_case(declined[1]) if declined[1] else "card_declined")
    return Behaviour(decline_code="unknown_token")


def _snake_case(words: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", words).lower()
