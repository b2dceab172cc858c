#!/usr/bin/env bash
# A table booked, looked at and cancelled over gRPC through the edge, by reflection: no proto file is needed.
# Needs the mesh (`make up`), grpcurl (https://github.com/fullstorydev/grpcurl, or `make tools`) and python3.
set -euo pipefail
PATH="$PATH:$PWD/.cache/tools"

EDGE=${EDGE:-$(make address)}
TOKEN=${TOKEN:-$(make token SUB=alice ROLE=customer)}

# The edge serves all of them. DIRECT=yes asks each service at its own address.
if [ -n "${DIRECT:-}" ]; then
    RESERVATION_ADDRESS=${RESERVATION_ADDRESS:-$(make address SERVICE=reservation)}
    DEPOSIT_ADDRESS=${DEPOSIT_ADDRESS:-$(make address SERVICE=deposit)}
    HISTORY_ADDRESS=${HISTORY_ADDRESS:-$(make address SERVICE=history)}
    RESTAURANT_ADDRESS=${RESTAURANT_ADDRESS:-$(make address SERVICE=restaurant)}
    grpcurl() {
        local address
        case "$*" in
            *dinemesh.deposit.v1.DepositService/*) address=$DEPOSIT_ADDRESS ;;
            *dinemesh.history.v1.HistoryService/*) address=$HISTORY_ADDRESS ;;
            *dinemesh.restaurant.v1.RestaurantService/*) address=$RESTAURANT_ADDRESS ;;
            *) address=$RESERVATION_ADDRESS ;;
        esac
        command grpcurl "${@/#"$EDGE"/$address}"
    }
fi

# What is offered here?
grpcurl -plaintext $EDGE list
grpcurl -plaintext $EDGE describe dinemesh.reservation.v1.CreateReservationRequest

# Where can I eat? (needs no token) Here at the first one that accepts by itself; at others a person does.
AUTOMATIC=$(
    grpcurl -plaintext $EDGE dinemesh.restaurant.v1.RestaurantService/ListRestaurants \
        | examples/pick restaurants policy.acceptance=ACCEPTANCE_MODE_AUTO restaurantId
)
RESTAURANT=${RESTAURANT:-$AUTOMATIC}

# When is there a table for two? The date is a day in the restaurant's time zone.
DATE=${DATE:-$(date -d 'next week' +%F)}
SLOTS=$(
    grpcurl -plaintext -d '{"restaurant_id": "'$RESTAURANT'", "date": "'$DATE'", "party_size": 2}' \
        $EDGE dinemesh.reservation.v1.ReservationService/ListAvailableSlots
)
TIME=$(echo "$SLOTS" | examples/pick slots available=true dineTime)
# It names the terms that the answer shows: nobody is booked on others.
POLICY=$(echo "$SLOTS" | examples/pick policyEtag 2>/dev/null)

# Book it. The same request_id again gives the same answer and never a second charge.
REQUEST=$(python3 -c 'import uuid; print(uuid.uuid4())')
RESERVATION=$(
    grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"request_id": "'$REQUEST'",
    "restaurant_id": "'$RESTAURANT'", "dine_time": "'$TIME'", "party_size": 2, "policy_etag": "'$POLICY'",
    "payment_token": "tok_visa"}' \
        $EDGE dinemesh.reservation.v1.ReservationService/CreateReservation \
        | examples/pick reservation reservationId
)

# Has the restaurant accepted? It ends by itself when the reservation has; here it is left when it is confirmed.
grpcurl -plaintext -max-time 5 -H "authorization: Bearer $TOKEN" -d '{"reservation_id": "'$RESERVATION'"}' \
    $EDGE dinemesh.reservation.v1.ReservationService/WatchReservation \
    | sed '/STATE_CONFIRMED/q' || true

# How does it stand? And where is my money?
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
