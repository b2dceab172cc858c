"""The RPCs and their HTTP form: the table of the design, written out."""

from typing import Any

from google.api import annotations_pb2

from tests.contracts.contracts import contracts

RESTAURANT = "/v1/restaurants/{restaurant_id}"
BOOKING = RESTAURANT + "/bookings/{reservation_id}"
NOT_AT_THE_EDGE = ""
HTTP: Any = annotations_pb2.http  # its stub does not say that it is an extension

BINDINGS = {
    "ReservationService.CreateReservation": "POST /v1/reservations",
    "ReservationService.GetReservation": "GET /v1/reservations/{reservation_id}",
    "ReservationService.ListReservations": "GET /v1/reservations",
    "ReservationService.ModifyReservation": "PATCH /v1/reservations/{reservation_id}",
    "ReservationService.CancelReservation": "POST /v1/reservations/{reservation_id}:cancel",
    "ReservationService.WatchReservation": "GET /v1/reservations/{reservation_id}:watch",
    "ReservationService.ListAvailableSlots": f"GET {RESTAURANT}/availableSlots",
    "DepositService.GetDeposit": "GET /v1/deposits/{deposit_id}",
    "DepositService.ListDeposits": "GET /v1/deposits",
    "DepositService.CreateDeposit": NOT_AT_THE_EDGE,
    "DepositService.RetryRefund": NOT_AT_THE_EDGE,
    "RestaurantService.ListRestaurants": "GET /v1/restaurants",
    "RestaurantService.GetRestaurant": f"GET {RESTAURANT}",
    "RestaurantService.CreateRestaurant": "POST /v1/restaurants",
    "RestaurantService.UpdateRestaurant": f"PATCH {RESTAURANT}",
    "RestaurantService.OpenSlots": f"POST {RESTAURANT}/slots:open",
    "RestaurantService.CloseSlots": f"POST {RESTAURANT}/slots:close",
    "RestaurantService.ListBookings": f"GET {RESTAURANT}/bookings",
    "RestaurantService.WatchBookings": f"GET {RESTAURANT}/bookings:watch",
    "RestaurantService.AcceptBooking": f"POST {BOOKING}:accept",
    "RestaurantService.DeclineBooking": f"POST {BOOKING}:decline",
    "RestaurantService.MarkSeated": f"POST {BOOKING}:seat",
    "RestaurantService.MarkNoShow": f"POST {BOOKING}:noShow",
    "RestaurantService.CompleteBooking": f"POST {BOOKING}:complete",
    "HistoryService.ListTimelineEntries": "GET /v1/timeline",
    "HistoryService.WatchTimeline": "GET /v1/timeline:watch",
}
STREAMS = {
    "ReservationService.WatchReservation",
    "RestaurantService.WatchBookings",
    "HistoryService.WatchTimeline",
}


def methods() -> dict[str, tuple[str, str, bool]]:
    """Of every rpc of the mesh: its HTTP form, what of the request is the body, whether it streams."""
    found = {}
    for file in contracts():
        for service in file.service:
            for method in service.method:
                assert not method.client_streaming
                rule = method.options.Extensions[HTTP]
                verb = rule.WhichOneof("pattern")
                form = f"{verb.upper()} {getattr(rule, verb)}" if verb else NOT_AT_THE_EDGE
                found[f"{service.name}.{method.name}"] = (form, rule.body, method.server_streaming)
    return found


def test_the_http_form_of_every_rpc_is_that_of_the_design() -> None:
    mesh = {name: form for name, (form, _, _) in methods().items() if not name.startswith("Sandbox")}
    assert mesh == BINDINGS


def test_the_payment_sandbox_has_no_http_form() -> None:
    sandbox = [form for name, (form, _, _) in methods().items() if name.startswith("Sandbox")]
    assert set(sandbox) <= {NOT_AT_THE_EDGE}


def test_what_changes_something_takes_its_fields_from_the_body_and_what_reads_from_the_query() -> None:
    for name, (form, body, _) in methods().items():
        assert body == ("*" if form.startswith(("POST", "PATCH")) else ""), name


def test_watches_stream_and_nothing_else_does() -> None:
    assert {name for name, (_, _, streams) in methods().items() if streams} == STREAMS
