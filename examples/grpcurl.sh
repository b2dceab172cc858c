#!/usr/bin/env bash
# A table booked, looked at and cancelled from the command line, over reflection: no proto file is needed.
# Needs the mesh (`make up`), grpcurl (https://github.com/fullstorydev/grpcurl) and python3.
set -euo pipefail

TOKEN=${TOKEN:-$(make token SUB=alice ROLE=customer)}

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
grpcurl -plaintext 127.0.0.1:8081 list
grpcurl -plaintext 127.0.0.1:8081 describe dinemesh.reservation.v1.CreateReservationRequest

# Where can I eat? (needs no token)
FIRST=$(
    grpcurl -plaintext 127.0.0.1:8084 dinemesh.restaurant.v1.RestaurantService/ListRestaurants \
        | pick restaurants.0.restaurant_id
)
RESTAURANT=${RESTAURANT:-$FIRST}

# When is there a table for two? The date is a day in the restaurant's time zone.
DATE=${DATE:-$(date -d 'next week' +%F)}
TIME=$(
    grpcurl -plaintext -d '{"restaurant_id": "'$RESTAURANT'", "date": "'$DATE'", "party_size": 2}' \
        127.0.0.1:8081 dinemesh.reservation.v1.ReservationService/ListAvailableSlots \
        | pick slots.0.dine_time
)

# Book it. The same request_id again gives the same answer and never a second charge.
REQUEST=$(python3 -c 'import uuid; print(uuid.uuid4())')
RESERVATION=$(
    grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"request_id": "'$REQUEST'",
    "restaurant_id": "'$RESTAURANT'", "dine_time": "'$TIME'", "party_size": 2, "payment_token": "tok_visa"}' \
        127.0.0.1:8081 dinemesh.reservation.v1.ReservationService/CreateReservation \
        | pick reservation.reservation_id
)

# Has the restaurant accepted? And where is my money?
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    127.0.0.1:8081 dinemesh.reservation.v1.ReservationService/GetReservation
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    127.0.0.1:8082 dinemesh.deposit.v1.DepositService/ListDeposits

# Cancel: the answer says what was refunded and what was forfeited.
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    127.0.0.1:8081 dinemesh.reservation.v1.ReservationService/CancelReservation

# Everything that happened.
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    127.0.0.1:8083 dinemesh.history.v1.HistoryService/ListTimelineEntries
