"""The examples of the document: one story, told in the messages of the edge.

Alice books a table for four at Trattoria Lume, makes it five, and cancels in time. A test holds each of them
against its schema and against the contract.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

RESTAURANT_ID = "8c1f0c52-6d4b-4f4e-9a57-0d7f5b1c2a10"
RESERVATION_ID = "3f6f1f0e-5a62-4d0b-8f1e-9b1f5a6b7c80"
DEPOSIT_ID = "b7a3f9d4-2c1e-4f68-9c55-4f0a1d2e3f60"
SECOND_DEPOSIT_ID = "d2e8c6a1-7b3f-4a59-8e44-5c6b7a8d9e0f"
REFUND_ID = "a4d1e2f3-6b7c-4d8e-9f0a-1b2c3d4e5f60"
REQUEST_ID = "5e0b9c1a-3d2f-4e6a-8b7c-9d0e1f2a3b4c"
EVENT_ID = "0199f3a0-7c11-7e7a-b0a4-6f2d1c3b5a79"
CORRELATION_ID = "7f1c2d3e4b5a69788796a5b4c3d2e1f0"
POLICY_ETAG = "sUZP48HZUyptcB1CiC9Ru_z5QyxzzYE_voDIca5SlwY"
PAGE_TOKEN = (
    "WyI4YTNhYjAzYjljZWMiLDE3OTY0MDcyMDAwMDAwMDAsIjNmNmYxZjBlLTVhNjItNGQwYi04ZjFlLTliMWY1YTZiN2M4MCJd"
)

_ASKED_AT = "2026-11-27T10:15:30.412345Z"
_CHANGED_AT = "2026-11-27T10:15:31.006218Z"
_DINE_TIME = "2026-12-04T18:30:00Z"
_FREE_UNTIL = "2026-12-03T18:30:00Z"
_ACCEPT_UNTIL = "2026-11-27T12:15:30.412345Z"


def _euros(units: int) -> Json:
    return {"currencyCode": "EUR", "units": str(units), "nanos": 0}


POLICY: Json = {
    "depositPerPerson": _euros(20),
    "freeCancelWindowSeconds": 86400,
    "acceptance": "ACCEPTANCE_MODE_AUTO",
    "acceptanceLimitSeconds": 7200,
    "acceptanceLeadSeconds": 1800,
    "noShowGraceSeconds": 900,
    "slotIntervalSeconds": 1800,
    "serviceDurationSeconds": 7200,
    "maxPartySize": 12,
}

RESTAURANT: Json = {
    "restaurantId": RESTAURANT_ID,
    "name": "Trattoria Lume",
    "timeZone": "Europe/Rome",
    "policy": POLICY,
    "policyEtag": POLICY_ETAG,
    "etag": "1",
    "createTime": "2026-11-01T09:00:00.000125Z",
    "updateTime": "2026-11-01T09:00:00.000125Z",
}


def _reservation(**change: Any) -> Json:
    return {
        "reservationId": RESERVATION_ID,
        "customerId": "alice",
        "restaurantId": RESTAURANT_ID,
        "dineTime": _DINE_TIME,
        "partySize": 4,
        "revision": 1,
        "state": "RESERVATION_STATE_PENDING_ACCEPTANCE",
        "cancelledBy": "CANCELLED_BY_UNSPECIFIED",
        "failureCause": "FAILURE_CAUSE_UNSPECIFIED",
        "declineCause": "DECLINE_CAUSE_UNSPECIFIED",
        "deposits": [
            {
                "depositId": DEPOSIT_ID,
                "amount": _euros(80),
                "held": _euros(80),
                "state": "DEPOSIT_STATE_CAPTURED",
            }
        ],
        "policy": POLICY,
        "acceptDeadline": _ACCEPT_UNTIL,
        "freeCancelTime": _FREE_UNTIL,
        "createTime": _ASKED_AT,
        "updateTime": _CHANGED_AT,
        "etag": "1",
        "note": "By the window, please.",
    } | change


_FIVE = _reservation(
    partySize=5,
    revision=2,
    etag="2",
    deposits=[
        *_reservation()["deposits"],
        {
            "depositId": SECOND_DEPOSIT_ID,
            "amount": _euros(20),
            "held": _euros(20),
            "state": "DEPOSIT_STATE_CAPTURED",
        },
    ],
)

_CANCELLED = _FIVE | {
    "state": "RESERVATION_STATE_CANCELLED",
    "cancelledBy": "CANCELLED_BY_CUSTOMER",
    "deposits": [one | {"held": _euros(0)} for one in _FIVE["deposits"]],
}

_CONFIRMED = _reservation(state="RESERVATION_STATE_CONFIRMED")

DEPOSIT: Json = {
    "depositId": DEPOSIT_ID,
    "reservationId": RESERVATION_ID,
    "customerId": "alice",
    "amount": _euros(80),
    "state": "DEPOSIT_STATE_REFUNDED",
    "captured": _euros(80),
    "held": _euros(0),
    "refunding": _euros(0),
    "refunded": _euros(80),
    "refundFailed": _euros(0),
    "forfeited": _euros(0),
    "refunds": [
        {
            "refundId": REFUND_ID,
            "amount": _euros(80),
            "state": "REFUND_STATE_SUCCEEDED",
            "attempt": 1,
            "failureCode": "",
            "createTime": "2026-11-28T08:00:00.120311Z",
            "updateTime": "2026-11-28T08:00:00.340774Z",
        }
    ],
    "forfeits": [],
    "declineCode": "",
    "createTime": _ASKED_AT,
    "updateTime": "2026-11-28T08:00:00.340774Z",
}


def _booking(state: str, *, confirmed: bool = True) -> Json:
    return {
        "reservationId": RESERVATION_ID,
        "restaurantId": RESTAURANT_ID,
        "customerId": "alice",
        "dineTime": _DINE_TIME,
        "partySize": 4,
        "revision": 1,
        "state": f"BOOKING_STATE_{state}",
        "confirmed": confirmed,
        "acceptDeadline": _ACCEPT_UNTIL,
        "noShowTime": "2026-12-04T18:45:00Z",
        "createTime": _ASKED_AT,
        "updateTime": _CHANGED_AT,
    }


ENTRY: Json = {
    "eventId": EVENT_ID,
    "kind": "TIMELINE_ENTRY_KIND_RESERVATION_PLACED",
    "occurTime": _CHANGED_AT,
    "reservationId": RESERVATION_ID,
    "restaurantId": RESTAURANT_ID,
    "depositId": "",
    "amount": _euros(80),
    "state": "PENDING_ACCEPTANCE",
    "revision": 1,
    "dineTime": _DINE_TIME,
    "partySize": 4,
    "correlationId": CORRELATION_ID,
    "summary": "Reserved for 4 guests; the deposit of 80.00 EUR is paid and the restaurant is asked.",
}

_SLOT: Json = {"dineTime": _DINE_TIME, "capacity": 20, "version": "1"}
_DAYS: Json = {
    "firstDate": {"year": 2026, "month": 12, "day": 1},
    "lastDate": {"year": 2026, "month": 12, "day": 31},
    "times": [{"hours": 19}, {"hours": 19, "minutes": 30}],
}
_REVISION: Json = {"revision": 1}

PARAMETERS: Json = {
    "restaurant_id": RESTAURANT_ID,
    "reservation_id": RESERVATION_ID,
    "deposit_id": DEPOSIT_ID,
    "date": "2026-12-04",
    "party_size": 4,
    "page_size": 20,
    "start_time": "2026-12-04T00:00:00Z",
    "end_time": "2026-12-05T00:00:00Z",
    "states": ["BOOKING_STATE_RECEIVED", "BOOKING_STATE_ACCEPTED"],
}
"""By the name of a parameter. Tokens of pages and streams have none: they are the server's to make."""

BODIES: Json = {
    "CreateReservation": {
        "requestId": REQUEST_ID,
        "restaurantId": RESTAURANT_ID,
        "dineTime": _DINE_TIME,
        "partySize": 4,
        "policyEtag": POLICY_ETAG,
        "paymentToken": "tok_visa",
        "note": "By the window, please.",
    },
    "ModifyReservation": {
        "requestId": "c0a8d7e6-1f2b-4c3d-9e4f-5a6b7c8d9e0f",
        "etag": "1",
        "partySize": 5,
        "paymentToken": "tok_visa",
    },
    "CancelReservation": {},
    "CreateRestaurant": {
        "requestId": "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "name": "Trattoria Lume",
        "timeZone": "Europe/Rome",
        "policy": POLICY,
    },
    "UpdateRestaurant": {"etag": "1", "name": "Trattoria Lume al Porto"},
    "OpenSlots": {**_DAYS, "capacity": 20},
    "CloseSlots": _DAYS,
    "AcceptBooking": _REVISION,
    "DeclineBooking": _REVISION,
    "MarkSeated": _REVISION,
    "MarkNoShow": _REVISION,
    "CompleteBooking": _REVISION,
}
"""By the name of an RPC that takes a body."""

ANSWERS: Json = {
    "CreateReservation": {"reservation": _reservation()},
    "GetReservation": {"reservation": _CONFIRMED},
    "ListReservations": {"reservations": [_CONFIRMED], "nextPageToken": PAGE_TOKEN},
    "ModifyReservation": {"reservation": _FIVE},
    "CancelReservation": {"reservation": _CANCELLED, "refunded": _euros(100), "forfeited": _euros(0)},
    "WatchReservation": {"reservation": _CONFIRMED},
    "ListAvailableSlots": {
        "slots": [
            {
                "dineTime": _DINE_TIME,
                "available": True,
                "deposit": _euros(80),
                "freeCancelTime": _FREE_UNTIL,
            }
        ],
        "nextPageToken": "",
        "timeZone": "Europe/Rome",
        "policyEtag": POLICY_ETAG,
    },
    "GetDeposit": {"deposit": DEPOSIT},
    "ListDeposits": {"deposits": [DEPOSIT], "nextPageToken": ""},
    "ListRestaurants": {"restaurants": [RESTAURANT], "nextPageToken": ""},
    "GetRestaurant": {"restaurant": RESTAURANT},
    "CreateRestaurant": {"restaurant": RESTAURANT},
    "UpdateRestaurant": {
        "restaurant": RESTAURANT
        | {"name": "Trattoria Lume al Porto", "etag": "2", "updateTime": "2026-11-02T09:30:00.771902Z"}
    },
    "OpenSlots": {"slots": [_SLOT]},
    "CloseSlots": {"slots": [_SLOT | {"capacity": 0, "version": "2"}]},
    "ListBookings": {"bookings": [_booking("ACCEPTED")], "nextPageToken": ""},
    "WatchBookings": {
        "booking": _booking("RECEIVED", confirmed=False),
        "resumeToken": "eyJ0aW1lIjoxNzY0MjM4NTMxMDA2MjE4fQ",
    },
    "AcceptBooking": {"booking": _booking("ACCEPTED", confirmed=False)},
    "DeclineBooking": {"booking": _booking("DECLINED", confirmed=False)},
    "MarkSeated": {"booking": _booking("SEATED")},
    "MarkNoShow": {"booking": _booking("NO_SHOW")},
    "CompleteBooking": {"booking": _booking("COMPLETED")},
    "ListTimelineEntries": {"entries": [ENTRY], "nextPageToken": ""},
    "WatchTimeline": {"entry": ENTRY, "resumeToken": "eyJwbGFjZSI6MX0"},
}
"""By the name of an RPC; of a stream, one message."""

METADATA: Json = {
    "decline_code": "insufficient_funds",
    "state": "RECEIVED",
    "revision": "2",
    "policy_etag": POLICY_ETAG,
    "deposit": "80.00",
    "currency_code": "EUR",
    "free_cancel_time": _FREE_UNTIL,
    "limit": "20",
    "error_id": "9c0f6a1e2d3b4c5d8e7f60718293a4b5",
}
"""By the key of ErrorInfo.metadata that a reason's comment names."""

VIOLATION: Json = {"field": "party_size", "description": "must be between 1 and 1000", "reason": ""}
