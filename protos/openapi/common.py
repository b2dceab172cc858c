"""Schemas that no contract of ours spells out: Google's types by the JSON mapping of proto3, and refusals.

`ASKED` is how the services take a type (dinemesh/kit/wire.py), `ANSWERED` how the edge prints it.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_INT64 = "^-?[0-9]+$"
DETAIL_URL = "type.googleapis.com/google.rpc."

UUID: Schema = {
    "type": "string",
    "format": "uuid",
    "pattern": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "description": "A UUID in its usual form of 36 characters. Answers have it in lower case.",
}

TIMESTAMP: Schema = {"type": "string", "format": "date-time"}
"""Inline wherever it stands; answers are in UTC and end with Z."""

INT64: Schema = {"type": "string", "format": "int64", "pattern": _INT64}
"""A JSON number would lose digits beyond 2^53."""

ASKED: dict[str, Schema] = {
    "google.type.Money": {
        "type": "object",
        "description": "An amount of money.",
        "properties": {
            "currencyCode": {
                "type": "string",
                "pattern": "^[A-Z]{3}$",
                "description": "Currency of ISO 4217 that is paid with, three capital letters.",
            },
            "units": {
                **INT64,
                "description": "Whole units of the currency, as a decimal string; a JSON number will do.",
            },
            "nanos": {
                "type": "integer",
                "format": "int32",
                "minimum": -999_999_999,
                "maximum": 999_999_999,
                "description": "Billionths of a unit; not finer than the minor unit of the currency, "
                "and of the same sign as `units`.",
            },
        },
        "required": ["currencyCode"],
    },
    "google.type.Date": {
        "type": "object",
        "description": "A day of the calendar.",
        "properties": {
            "year": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 9999},
            "month": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 12},
            "day": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 31},
        },
        "required": ["year", "month", "day"],
    },
    "google.type.TimeOfDay": {
        "type": "object",
        "description": "A time of day, 00:00:00 to 23:59:59. What is left out is zero.",
        "properties": {
            "hours": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 23},
            "minutes": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 59},
            "seconds": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 59},
            "nanos": {"type": "integer", "format": "int32", "const": 0, "description": "Always zero."},
        },
    },
}

ANSWERED: dict[str, Schema] = {
    "google.type.Money": {
        "type": "object",
        "description": "An amount of money: `units` + `nanos` / 10^9 of the currency.",
        "properties": {
            "currencyCode": {
                "type": "string",
                "pattern": "^([A-Z]{3})?$",
                "description": "Currency by ISO 4217; empty for a zero whose currency was never known.",
            },
            "units": {**INT64, "description": "Whole units of the currency, as a decimal string."},
            "nanos": {
                "type": "integer",
                "format": "int32",
                "minimum": -999_999_999,
                "maximum": 999_999_999,
                "description": "Billionths of a unit, of the same sign as `units`.",
            },
        },
        "required": ["currencyCode", "units", "nanos"],
    },
}


def refusal(reasons: list[str]) -> dict[str, Schema]:
    """The schemas of what every refusal is: a google.rpc.Status with typed details."""
    return {
        "Status": {
            "type": "object",
            "description": "Why a call was refused (google.rpc.Status): every answer that is not 200.",
            "properties": {
                "code": {
                    "type": "integer",
                    "format": "int32",
                    "minimum": 1,
                    "maximum": 16,
                    "description": "The google.rpc.Code; the HTTP status follows from it.",
                },
                "message": {
                    "type": "string",
                    "description": "For the developer of the client, in English. "
                    "Decide by the reason, never by this text.",
                },
                "details": {
                    "type": "array",
                    "items": {
                        "oneOf": [
                            {"$ref": "#/components/schemas/ErrorInfo"},
                            {"$ref": "#/components/schemas/BadRequest"},
                            {"$ref": "#/components/schemas/RetryInfo"},
                        ],
                    },
                    "minItems": 1,
                    "description": "One ErrorInfo, and where it applies one BadRequest and one RetryInfo.",
                },
            },
            "required": ["code", "message", "details"],
        },
        "ErrorInfo": {
            "type": "object",
            "description": "The reason of a refusal (google.rpc.ErrorInfo).",
            "properties": {
                "@type": {"type": "string", "const": f"{DETAIL_URL}ErrorInfo"},
                "reason": {
                    "type": "string",
                    "enum": reasons,
                    "description": "What clients decide by. Each reason is explained where it can occur.",
                },
                "domain": {"type": "string", "const": "dinemesh"},
                "metadata": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                    "description": "More about some reasons; each says which keys.",
                },
            },
            "required": ["@type", "reason", "domain"],
        },
        "BadRequest": {
            "type": "object",
            "description": "What is wrong with the request (google.rpc.BadRequest).",
            "properties": {
                "@type": {"type": "string", "const": f"{DETAIL_URL}BadRequest"},
                "fieldViolations": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "properties": {
                            "field": {
                                "type": "string",
                                "description": "Path of the field by the names of the contract, "
                                "for example `policy.max_party_size` or `times[1]`.",
                            },
                            "description": {"type": "string", "description": "What is wrong with it."},
                            "reason": {"type": "string", "description": "Empty here; kept by google.rpc."},
                        },
                        "required": ["field", "description"],
                    },
                },
            },
            "required": ["@type", "fieldViolations"],
        },
        "RetryInfo": {
            "type": "object",
            "description": "When to try again (google.rpc.RetryInfo); "
            "the header `retry-after` says it in whole seconds.",
            "properties": {
                "@type": {"type": "string", "const": f"{DETAIL_URL}RetryInfo"},
                "retryDelay": {
                    "type": "string",
                    "pattern": r"^[0-9]+(\.[0-9]+)?s$",
                    "description": "Seconds to wait, with an s at the end.",
                },
            },
            "required": ["@type", "retryDelay"],
        },
    }


HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}
"""The HTTP status of each code, as google/rpc/code.proto says and the transcoder does."""
