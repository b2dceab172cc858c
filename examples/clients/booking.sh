# Books a table, is refused, watches and cancels, by `buf curl`, which is told what this script is told, and `pick`
# (examples/pick of the repository).
set -euo pipefail
service=http://$EDGE/dinemesh.reservation.v1.ReservationService

call() {
    local method=$1 body=$2
    shift 2
    buf curl --protocol grpc --http2-prior-knowledge -H "authorization: Bearer $TOKEN" -d "$body" "$@" "$service/$method"
}

detail() { # of a refusal: its type, and the steps to a value in it
    local type=$1
    shift
    { ./pick details "type=$type" value <<<"$refusal" | base64 -d 2>/dev/null || true; } |
        buf convert "$CONTRACTS/dinemesh.binpb" --type "$type" --from -#format=binpb | ./pick "$@"
}

slots=$(call ListAvailableSlots '{"restaurantId": "'$RESTAURANT'", "date": "'$DATE'", "partySize": 2}' "$@")
time=$(./pick slots available=true dineTime <<<"$slots")
policy=$(./pick policyEtag <<<"$slots")
request='"requestId": "'$REQUEST'", "restaurantId": "'$RESTAURANT'", "dineTime": "'$time'", "policyEtag": "'$policy'",
    "paymentToken": "tok_visa"'

refusal=$(call CreateReservation "{$request}" "$@" 2>&1) || true
echo "refused $(detail google.rpc.ErrorInfo reason)"
echo "wrong $(detail google.rpc.BadRequest fieldViolations 0 field)"

id=$(call CreateReservation "{$request, \"partySize\": 2}" "$@" | ./pick reservation reservationId)
echo "booked $id"

call WatchReservation '{"reservationId": "'$id'"}' "$@" >watched &
for _ in {1..300}; do
    ! grep -q RESERVATION_STATE_CONFIRMED watched || break
    sleep 0.1
done
grep -q RESERVATION_STATE_CONFIRMED watched
echo "watched CONFIRMED"

cancelled=$(call CancelReservation '{"reservationId": "'$id'"}' "$@")
echo "cancelled $(./pick refunded units <<<"$cancelled") $(./pick refunded currencyCode <<<"$cancelled")"

wait $! # The watch ends by itself: nothing more will happen.
