#!/usr/bin/env bash
# A table found, booked, watched, changed and cancelled over HTTP/JSON.
# Needs the mesh (`make up`), curl and python3.
set -euo pipefail

command -v curl >/dev/null || { echo "curl is missing: sudo apt-get install curl" >&2; exit 1; }

EDGE=${EDGE:-$(make address)}
TOKEN=${TOKEN:-$(make token SUB=alice ROLE=customer)}

# A refusal that is not expected ends the story.
curl() { command curl --fail-with-body --show-error "$@"; }

show() { python3 -m json.tool --indent 2; }

# Where can I eat? (needs no token) Here at the first one that accepts by itself; at others a person does.
AUTOMATIC=$(
    curl -s "http://$EDGE/v1/restaurants" \
        | examples/pick restaurants policy.acceptance=ACCEPTANCE_MODE_AUTO restaurantId
)
RESTAURANT=${RESTAURANT:-$AUTOMATIC}

# When is there a table for two? The date is a day in the restaurant's time zone.
DATE=${DATE:-$(date -d 'next week' +%F)}
SLOTS=$(
    curl -s "http://$EDGE/v1/restaurants/$RESTAURANT/availableSlots?date=$DATE&party_size=2" \
        | show
)
TIME=$(echo "$SLOTS" | examples/pick slots available=true dineTime)
# It names the terms that the answer shows: nobody is booked on others.
POLICY=$(echo "$SLOTS" | examples/pick policyEtag 2>/dev/null)

# Book it.
REQUEST=$(python3 -c 'import uuid; print(uuid.uuid4())')
RESERVATION=$(
    curl -s -H "authorization: Bearer $TOKEN" -H 'content-type: application/json' \
        -d '{"request_id": "'$REQUEST'", "restaurant_id": "'$RESTAURANT'", "dine_time": "'$TIME'",
            "party_size": 2, "policy_etag": "'$POLICY'", "payment_token": "tok_visa", "note": "by the window, please"}' \
        "http://$EDGE/v1/reservations" \
        | examples/pick reservation reservationId
)

# Was the answer lost on the way? The same request again gives the same reservation and never a second charge.
AGAIN=$(
    curl -s -H "authorization: Bearer $TOKEN" -H 'content-type: application/json' \
        -d '{"request_id": "'$REQUEST'", "restaurant_id": "'$RESTAURANT'", "dine_time": "'$TIME'",
            "party_size": 2, "policy_etag": "'$POLICY'", "payment_token": "tok_visa", "note": "by the window, please"}' \
        "http://$EDGE/v1/reservations" \
        | examples/pick reservation reservationId
)
[ "$AGAIN" = "$RESERVATION" ]

# Watch it: one JSON object a line, as it happens. (Here until the restaurant has accepted, or for five seconds.)
curl -sN --max-time 5 -H "authorization: Bearer $TOKEN" "http://$EDGE/v1/reservations/$RESERVATION:watch" \
    | sed '/STATE_CONFIRMED/q' || true

# How does it stand? The etag says what we have seen.
ETAG=$(
    curl -s -H "authorization: Bearer $TOKEN" "http://$EDGE/v1/reservations/$RESERVATION" \
        | examples/pick reservation etag
)

# Two more are coming: the difference is charged.
CHANGE=$(python3 -c 'import uuid; print(uuid.uuid4())')
curl -s -X PATCH -H "authorization: Bearer $TOKEN" -H 'content-type: application/json' \
    -d '{"request_id": "'$CHANGE'", "etag": "'$ETAG'", "party_size": 4, "payment_token": "tok_visa"}' \
    "http://$EDGE/v1/reservations/$RESERVATION" | show

# Watch again, now as server-sent events, for libraries that read them with fetch: a browser's own EventSource
# cannot send a token. (The restaurant is asked again.)
curl -sN --max-time 5 -H "authorization: Bearer $TOKEN" -H 'accept: text/event-stream' \
    "http://$EDGE/v1/reservations/$RESERVATION:watch" | sed '/STATE_CONFIRMED/q' || true

# A refusal names its reason, the fields that are wrong and, where another try makes sense, when.
command curl -si -H "authorization: Bearer $TOKEN" -H 'content-type: application/json' \
    -d '{"request_id": "1", "restaurant_id": "'$RESTAURANT'", "dine_time": "'$TIME'", "party_size": -2}' \
    "http://$EDGE/v1/reservations"
echo

# Where is my money?
curl -s -H "authorization: Bearer $TOKEN" "http://$EDGE/v1/deposits?reservation_id=$RESERVATION" | show

# Cancel: the answer says what was refunded and what was forfeited.
curl -s -X POST -H "authorization: Bearer $TOKEN" "http://$EDGE/v1/reservations/$RESERVATION:cancel" | show

# A watch of what has ended says so with its last message; one that stops without it was cut off.
curl -sN -H "authorization: Bearer $TOKEN" "http://$EDGE/v1/reservations/$RESERVATION:watch"

# Everything that happened: live until the refund, and as a list.
curl -sN --max-time 5 -H "authorization: Bearer $TOKEN" -H 'accept: text/event-stream' \
    "http://$EDGE/v1/timeline:watch?reservation_id=$RESERVATION" | sed '/DEPOSIT_REFUNDED/q' || true
curl -s -H "authorization: Bearer $TOKEN" "http://$EDGE/v1/timeline?reservation_id=$RESERVATION" | show
