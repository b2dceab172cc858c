-- Made by `python -m protos.bodies` out of protos/. Do not edit.
-- What bodies in JSON may have, for bodies.lua: the calls that take one, and the fields of their messages.

local CONTRACT = {
  calls = {
    {verb = "POST", path = "^/v1/reservations/?$", request = "dinemesh.reservation.v1.CreateReservationRequest", of_path = {}},
    {verb = "PATCH", path = "^/v1/reservations/[^/:]+/?$", request = "dinemesh.reservation.v1.ModifyReservationRequest", of_path = {"reservation_id"}},
    {verb = "POST", path = "^/v1/reservations/[^/]+:cancel/?$", request = "dinemesh.reservation.v1.CancelReservationRequest", of_path = {"reservation_id"}},
    {verb = "POST", path = "^/v1/restaurants/?$", request = "dinemesh.restaurant.v1.CreateRestaurantRequest", of_path = {}},
    {verb = "PATCH", path = "^/v1/restaurants/[^/:]+/?$", request = "dinemesh.restaurant.v1.UpdateRestaurantRequest", of_path = {"restaurant_id"}},
    {verb = "POST", path = "^/v1/restaurants/[^/]+/bookings/[^/]+:accept/?$", request = "dinemesh.restaurant.v1.AcceptBookingRequest", of_path = {"restaurant_id", "reservation_id"}},
    {verb = "POST", path = "^/v1/restaurants/[^/]+/bookings/[^/]+:complete/?$", request = "dinemesh.restaurant.v1.CompleteBookingRequest", of_path = {"restaurant_id", "reservation_id"}},
    {verb = "POST", path = "^/v1/restaurants/[^/]+/bookings/[^/]+:decline/?$", request = "dinemesh.restaurant.v1.DeclineBookingRequest", of_path = {"restaurant_id", "reservation_id"}},
    {verb = "POST", path = "^/v1/restaurants/[^/]+/bookings/[^/]+:noShow/?$", request = "dinemesh.restaurant.v1.MarkNoShowRequest", of_path = {"restaurant_id", "reservation_id"}},
    {verb = "POST", path = "^/v1/restaurants/[^/]+/bookings/[^/]+:seat/?$", request = "dinemesh.restaurant.v1.MarkSeatedRequest", of_path = {"restaurant_id", "reservation_id"}},
    {verb = "POST", path = "^/v1/restaurants/[^/]+/slots:close/?$", request = "dinemesh.restaurant.v1.CloseSlotsRequest", of_path = {"restaurant_id"}},
    {verb = "POST", path = "^/v1/restaurants/[^/]+/slots:open/?$", request = "dinemesh.restaurant.v1.OpenSlotsRequest", of_path = {"restaurant_id"}},
  },
  messages = {
    ["dinemesh.reservation.v1.CancelReservationRequest"] = {
      {name = "reservation_id", json_name = "reservationId", kind = "string"},
    },
    ["dinemesh.reservation.v1.CreateReservationRequest"] = {
      {name = "request_id", json_name = "requestId", kind = "string"},
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "dine_time", json_name = "dineTime", kind = "time"},
      {name = "party_size", json_name = "partySize", kind = "number"},
      {name = "policy_etag", json_name = "policyEtag", kind = "string"},
      {name = "payment_token", json_name = "paymentToken", kind = "string"},
      {name = "note", json_name = "note", kind = "string"},
    },
    ["dinemesh.reservation.v1.ModifyReservationRequest"] = {
      {name = "reservation_id", json_name = "reservationId", kind = "string"},
      {name = "request_id", json_name = "requestId", kind = "string"},
      {name = "etag", json_name = "etag", kind = "string"},
      {name = "dine_time", json_name = "dineTime", kind = "time"},
      {name = "party_size", json_name = "partySize", kind = "number"},
      {name = "note", json_name = "note", kind = "string"},
      {name = "payment_token", json_name = "paymentToken", kind = "string"},
    },
    ["dinemesh.restaurant.v1.AcceptBookingRequest"] = {
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "reservation_id", json_name = "reservationId", kind = "string"},
      {name = "revision", json_name = "revision", kind = "number"},
    },
    ["dinemesh.restaurant.v1.CloseSlotsRequest"] = {
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "first_date", json_name = "firstDate", message = "google.type.Date"},
      {name = "last_date", json_name = "lastDate", message = "google.type.Date"},
      {name = "times", json_name = "times", list = true, message = "google.type.TimeOfDay"},
    },
    ["dinemesh.restaurant.v1.CompleteBookingRequest"] = {
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "reservation_id", json_name = "reservationId", kind = "string"},
      {name = "revision", json_name = "revision", kind = "number"},
    },
    ["dinemesh.restaurant.v1.CreateRestaurantRequest"] = {
      {name = "request_id", json_name = "requestId", kind = "string"},
      {name = "name", json_name = "name", kind = "string"},
      {name = "time_zone", json_name = "timeZone", kind = "string"},
      {name = "policy", json_name = "policy", message = "dinemesh.restaurant.v1.Policy"},
    },
    ["dinemesh.restaurant.v1.DeclineBookingRequest"] = {
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "reservation_id", json_name = "reservationId", kind = "string"},
      {name = "revision", json_name = "revision", kind = "number"},
    },
    ["dinemesh.restaurant.v1.MarkNoShowRequest"] = {
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "reservation_id", json_name = "reservationId", kind = "string"},
      {name = "revision", json_name = "revision", kind = "number"},
    },
    ["dinemesh.restaurant.v1.MarkSeatedRequest"] = {
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "reservation_id", json_name = "reservationId", kind = "string"},
      {name = "revision", json_name = "revision", kind = "number"},
    },
    ["dinemesh.restaurant.v1.OpenSlotsRequest"] = {
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "first_date", json_name = "firstDate", message = "google.type.Date"},
      {name = "last_date", json_name = "lastDate", message = "google.type.Date"},
      {name = "times", json_name = "times", list = true, message = "google.type.TimeOfDay"},
      {name = "capacity", json_name = "capacity", kind = "number"},
    },
    ["dinemesh.restaurant.v1.Policy"] = {
      {name = "deposit_per_person", json_name = "depositPerPerson", message = "google.type.Money"},
      {name = "free_cancel_window_seconds", json_name = "freeCancelWindowSeconds", kind = "number"},
      {name = "acceptance", json_name = "acceptance", kind = "enum", values = "ACCEPTANCE_MODE_AUTO, ACCEPTANCE_MODE_MANUAL"},
      {name = "acceptance_limit_seconds", json_name = "acceptanceLimitSeconds", kind = "number"},
      {name = "acceptance_lead_seconds", json_name = "acceptanceLeadSeconds", kind = "number"},
      {name = "no_show_grace_seconds", json_name = "noShowGraceSeconds", kind = "number"},
      {name = "slot_interval_seconds", json_name = "slotIntervalSeconds", kind = "number"},
      {name = "service_duration_seconds", json_name = "serviceDurationSeconds", kind = "number"},
      {name = "max_party_size", json_name = "maxPartySize", kind = "number"},
    },
    ["dinemesh.restaurant.v1.UpdateRestaurantRequest"] = {
      {name = "restaurant_id", json_name = "restaurantId", kind = "string"},
      {name = "etag", json_name = "etag", kind = "string"},
      {name = "name", json_name = "name", kind = "string"},
      {name = "policy", json_name = "policy", message = "dinemesh.restaurant.v1.Policy"},
    },
    ["google.type.Date"] = {
      {name = "year", json_name = "year", kind = "number"},
      {name = "month", json_name = "month", kind = "number"},
      {name = "day", json_name = "day", kind = "number"},
    },
    ["google.type.Money"] = {
      {name = "currency_code", json_name = "currencyCode", kind = "string"},
      {name = "units", json_name = "units", kind = "number"},
      {name = "nanos", json_name = "nanos", kind = "number"},
    },
    ["google.type.TimeOfDay"] = {
      {name = "hours", json_name = "hours", kind = "number"},
      {name = "minutes", json_name = "minutes", kind = "number"},
      {name = "seconds", json_name = "seconds", kind = "number"},
      {name = "nanos", json_name = "nanos", kind = "number"},
    },
  },
}
