"""Books a table, is refused and cancels, over the Python client that openapi-generator makes."""

import datetime as dt
import json
import os

import dinemesh_client as client

configuration = client.Configuration(host=f"http://{os.environ['EDGE']}", access_token=os.environ["TOKEN"])
with client.ApiClient(configuration) as channel:
    reservations = client.ReservationServiceApi(channel)
    slots = reservations.list_available_slots(
        os.environ["RESTAURANT"], dt.date.fromisoformat(os.environ["DATE"]), 2
    )
    request = client.CreateReservationRequest(
        request_id=os.environ["REQUEST"],
        restaurant_id=os.environ["RESTAURANT"],
        dine_time=slots.slots[0].dine_time,
        party_size=2,
        policy_etag="not the one that was shown",
        payment_token="tok_visa",
    )
    try:
        reservations.create_reservation(request)
    except client.ApiException as refusal:
        for detail in json.loads(refusal.body)["details"]:
            if "reason" in detail:
                print("refused", detail["reason"])
    request.policy_etag = slots.policy_etag
    booked = reservations.create_reservation(request).reservation
    print("booked", booked.reservation_id)
    cancelled = reservations.cancel_reservation(booked.reservation_id)
    print("cancelled", cancelled.refunded.units, cancelled.refunded.currency_code)
