"""Books a table, is refused, watches and cancels, over the stubs that docs/CLIENTS.md generates."""

import os

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.reservation.v1 import reservation_service_pb2 as pb
from dinemesh.reservation.v1 import reservation_service_pb2_grpc as pb_grpc

DEADLINE = 30
me = (("authorization", f"Bearer {os.environ['TOKEN']}"),)
client = pb_grpc.ReservationServiceStub(grpc.insecure_channel(os.environ["EDGE"]))

asked = pb.ListAvailableSlotsRequest(
    restaurant_id=os.environ["RESTAURANT"], date=os.environ["DATE"], party_size=2
)
slots = client.ListAvailableSlots(asked, timeout=DEADLINE)
request = pb.CreateReservationRequest(
    request_id=os.environ["REQUEST"],
    restaurant_id=os.environ["RESTAURANT"],
    dine_time=slots.slots[0].dine_time,
    policy_etag=slots.policy_etag,
    payment_token="tok_visa",
)
try:
    client.CreateReservation(request, metadata=me, timeout=DEADLINE)
except grpc.RpcError as refusal:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(refusal).details:
        if detail.Unpack(info):
            print("refused", info.reason)
        elif detail.Unpack(bad):
            for violation in bad.field_violations:
                print("wrong", violation.field)

request.party_size = 2
booked = client.CreateReservation(request, metadata=me, timeout=DEADLINE).reservation
print("booked", booked.reservation_id)

watched = pb.WatchReservationRequest(reservation_id=booked.reservation_id)
for message in client.WatchReservation(watched, metadata=me, timeout=DEADLINE):
    if message.reservation.state == reservation_pb2.RESERVATION_STATE_CONFIRMED:
        print("watched CONFIRMED")
        break

unwanted = pb.CancelReservationRequest(reservation_id=booked.reservation_id)
refunded = client.CancelReservation(unwanted, metadata=me, timeout=DEADLINE).refunded
print("cancelled", refunded.units, refunded.currency_code)
