#!/usr/bin/env bash
# A table booked, looked at and cancelled over gRPC through the edge, by reflection: no proto file is needed.
# Needs the mesh (`make up`), grpcurl (https://github.com/fullstorydev/grpcurl, or `make tools`) and python3.
set -euo pipefail
PATH="$PATH:$PWD/.cache/tools"

EDGE=${EDGE:-127.0.0.1:8080}
TOKEN=${TOKEN:-$(make token SUB=alice ROLE=customer)}

# The edge serves all of them. DIRECT=yes asks each service at its own port.
if [ -n "${DIRECT:-}" ]; then
    grpcurl() {
        local port
        case "$*" in
            *dinemesh.deposit.v1.DepositService/*) port=8082 ;;
            *dinemesh.history.v1.HistoryService/*) port=8083 ;;
            *dinemesh.restaurant.v1.RestaurantService/*) port=8084 ;;
            *) port=8081 ;;
        esac
        command grpcurl "${@/#"$EDGE"/127.0.0.1:$port}"
    }
fi

# One value out of a JSON answer, by its path; the answer itself is shown.
pick() {
    python3 -c '
import functools, json, sys
answer = sys.stdin.read()
print(answer, file=sys.stderr)
step = lambda value, key: value[int(key) if key.isdigit() else key]
print(functools.reduce(step, sys.argv[1].split("."), json.loads(answer)))' "$1"
}

# What is offered here?
grpcurl -plaintext $EDGE list
grpcurl -plaintext $EDGE describe dinemesh.reservation.v1.CreateReservationRequest

# Where can I eat? (needs no token)
FIRST=$(
    grpcurl -plaintext $EDGE dinemesh.restaurant.v1.RestaurantService/ListRestaurants \
        | pick restaurants.0.restaurantId
)
RESTAURANT=${RESTAURANT:-$FIRST}

# When is there a table for two? The date is a day in the restaurant's time zone.
DATE=${DATE:-$(date -d 'next week' +%F)}
SLOTS=$(
    grpcurl -plaintext -d '{"restaurant_id": "'$RESTAURANT'", "date": "'$DATE'", "party_size": 2}' \
        $EDGE dinemesh.reservation.v1.ReservationService/ListAvailableSlots
)
TIME=$(echo "$SLOTS" | pick slots.0.dineTime)
# It names the terms that the answer shows: nobody is booked on others.
POLICY=$(echo "$SLOTS" | pick policyEtag)

# Book it. The same request_id again gives the same answer and never a second charge.
REQUEST=$(python3 -c 'import uuid; print(uuid.uuid4())')
RESERVATION=$(
    grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"request_id": "'$REQUEST'",
    "restaurant_id": "'$RESTAURANT'", "dine_time": "'$TIME'", "party_size": 2, "policy_etag": "'$POLICY'",
    "payment_token": "tok_visa"}' \
        $EDGE dinemesh.reservation.v1.ReservationService/CreateReservation \
        | pick reservation.reservationId
)

# Has the restaurant accepted? And where is my money?
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    $EDGE dinemesh.reservation.v1.ReservationService/GetReservation
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    $EDGE dinemesh.deposit.v1.DepositService/ListDeposits

# Cancel: the answer says what was refunded and what was forfeited.
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    $EDGE dinemesh.reservation.v1.ReservationService/CancelReservation

# Everything that happened.
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    $EDGE dinemesh.history.v1.HistoryService/ListTimelineEntries
