"""Books a table, is refused and cancels, over the client that openapi-python-client makes."""

import datetime as dt
import os

from dinemesh_client import AuthenticatedClient
from dinemesh_client.api.reservation_service import (
    cancel_reservation,
    create_reservation,
    list_available_slots,
)
from dinemesh_client.models import CreateReservationRequest, ErrorInfo

client = AuthenticatedClient(base_url=f"http://{os.environ['EDGE']}", token=os.environ["TOKEN"])
slots = list_available_slots.sync(
    os.environ["RESTAURANT"],
    client=client,
    date=dt.date.fromisoformat(os.environ["DATE"]),
    party_size=2,
)
request = CreateReservationRequest(
    request_id=os.environ["REQUEST"],
    restaurant_id=os.environ["RESTAURANT"],
    dine_time=slots.slots[0].dine_time,
    party_size=2,
    policy_etag="not the one that was shown",
    payment_token="tok_visa",
)
refusal = create_reservation.sync(client=client, body=request)
for detail in refusal.details:
    if isinstance(detail, ErrorInfo):
        print("refused", detail.reason.value)
request.policy_etag = slots.policy_etag
booked = create_reservation.sync(client=client, body=request).reservation
print("booked", booked.reservation_id)
cancelled = cancel_reservation.sync(booked.reservation_id, client=client)
print("cancelled", cancelled.refunded.units, cancelled.refunded.currency_code)
