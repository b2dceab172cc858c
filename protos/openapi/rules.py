"""What the comment of a field says in fixed phrases, so that a machine can read it too.

The contracts state each limit once, in words, where people look; CONTRACTS_SAY lists the words and what they
become. `tests/contracts/test_openapi.py` holds that no limit of a request is overlooked, and
`tests/edge/test_fuzz.py` that the running services refuse what the document forbids.

No time has a pattern, though a dine_time must be in whole seconds: generated clients make a date of the text,
and those of openapi-generator for Python then match the pattern against the date, which fails whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from protos.openapi.contracts import Field, Value

Schema = dict[str, Any]

_Found = re.Match[str]
CONTRACTS_SAY: tuple[tuple[str, frozenset[str], Callable[[_Found], Schema]], ...] = (
    (r"^UUID\b", frozenset({"string"}), lambda _: {"$ref": "#/components/schemas/Uuid"}),
    (
        r"\b(\d+) to (\d+) characters\b",
        frozenset({"string"}),
        lambda found: {"minLength": int(found[1]), "maxLength": int(found[2])},
    ),
    (
        r"\bat most (\d+) characters\b",
        frozenset({"string"}),
        lambda found: {"maxLength": int(found[1])},
    ),
    # Unicode's category Cc, as dinemesh/kit/wire.py refuses it.
    (
        r"\bno control characters\b(?! but)",
        frozenset({"string"}),
        lambda _: {"pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$"},
    ),
    (
        r"\bno control characters but line breaks and tabs\b",
        frozenset({"string"}),
        lambda _: {"pattern": r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$"},
    ),
    (r'"YYYY-MM-DD"', frozenset({"string"}), lambda _: {"format": "date"}),
    (
        r"\b(\d+) to (\d+)\b(?! characters)",
        frozenset({"int32", "int64"}),
        lambda found: {"minimum": int(found[1]), "maximum": int(found[2])},
    ),
    (r"\b(\d+) or more\b", frozenset({"int32", "int64"}), lambda found: {"minimum": int(found[1])}),
    (r"\bnegative: INVALID_ARGUMENT\b", frozenset({"int32"}), lambda _: {"minimum": 0}),
    (r"\bAt least one\b", frozenset({"repeated"}), lambda _: {"minItems": 1}),
    (
        r"\bAt most (\d+) entries\b",
        frozenset({"repeated"}),
        lambda found: {"maxItems": int(found[1])},
    ),
)
"""Phrase, types of the fields that it speaks of, what it becomes. Only the first hit of a phrase counts."""

_REQUIRED = re.compile(r"\bRequired\b")
_NEVER = re.compile(r"^(Never sent|Not valid in a request)\b")


def limits(field: Field) -> Schema:
    """The keywords of JSON Schema that the comment of the field says."""
    kind = "repeated" if field.repeated else field.type
    found: Schema = {}
    if kind == "string" and _REQUIRED.search(field.comment):
        found["minLength"] = 1
    for phrase, kinds, become in CONTRACTS_SAY:
        hit = re.search(phrase, field.comment)
        if hit is not None and kind in kinds:
            found |= become(hit)
    return {"$ref": found["$ref"]} if "$ref" in found else found


def is_required(field: Field) -> bool:
    """Whether a request must have it: the comment says so, or a missing one reads as what is not allowed.

    A field that is not `optional` reads as zero, empty or the value 0 when it is left out.
    """
    if _REQUIRED.search(field.comment):
        return True
    if field.optional:
        return False
    said = limits(field)
    return bool(said.get("minimum", 0) > 0 or said.get("minLength", 0) > 0 or said.get("minItems", 0) > 0)


def is_used(value: Value) -> bool:
    """Whether a value of an enum is ever sent; the zero value often is not."""
    return not _NEVER.search(value.comment)
