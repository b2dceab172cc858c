"""One id, followed: book a table under an id of our own, and see where it turns up.

    make up
    TOKEN=$(make token SUB=alice ROLE=customer) .venv/bin/python -m examples.correlation

In the answer's header, in the log of the edge, of each service called and of the payment provider, and in
each entry of the timeline, which is made of events only. With nothing but HTTP, JSON and the logs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from examples import settings

PATIENCE = 20.0
"""Seconds until the restaurant, which accepts by itself, has answered, and until all logs are written."""
NOT_FOUND = 404
"""History has not heard of the reservation yet."""
PARTS = {"edge", "reservation", "deposit", "sandbox"}
"""Whoever takes part in a booking before it is answered; the sandbox stands for the payment provider."""
LAST = "TIMELINE_ENTRY_KIND_RESERVATION_CONFIRMED"


class Edge:
    """JSON over HTTP, as anybody."""

    def __init__(self, address: str, token: str) -> None:
        self._url = f"http://{address}/v1"
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    def ask(self, path: str, request: object = None, **headers: str) -> tuple[Any, Any]:
        """The answer and its headers; a POST where there is a request."""
        body = None if request is None else json.dumps(request).encode()
        asked = urllib.request.Request(self._url + path, body, {**self._headers, **headers})
        with urllib.request.urlopen(asked, timeout=15) as answer:
            return json.load(answer), answer.headers


def a_table(edge: Edge, restaurant_name: str) -> dict[str, str]:
    restaurants, _ = edge.ask("/restaurants")
    found = next(one for one in restaurants["restaurants"] if one["name"] == restaurant_name)
    day = (datetime.now(UTC) + timedelta(days=3)).date()
    place = f"/restaurants/{found['restaurantId']}/availableSlots?date={day}&party_size=2"
    slots, _ = edge.ask(place)
    free = next(slot for slot in slots["slots"] if slot.get("available"))
    return {
        "restaurantId": found["restaurantId"],
        "dineTime": free["dineTime"],
        "policyEtag": slots["policyEtag"],
    }


def timeline(edge: Edge, reservation_id: str) -> list[Any]:
    """As soon as the restaurant has accepted."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            entries: list[Any] = edge.ask(f"/timeline?reservation_id={reservation_id}")[0]["entries"]
        except urllib.error.HTTPError as refused:
            if refused.code != NOT_FOUND:
                raise
            entries = []
        if any(entry["kind"] == LAST for entry in entries) or time.monotonic() > end:
            return entries
        time.sleep(0.1)


def logged(logs: Path, correlation_id: str) -> dict[str, list[str]]:
    """By part, what it logged under the id, as soon as all have: Envoy writes its log every ten seconds."""
    end = time.monotonic() + PATIENCE
    while True:
        found: dict[str, list[str]] = {}
        for file in sorted(logs.glob("*.log")):
            for line in file.read_text().splitlines():
                if correlation_id in line and line.startswith("{"):
                    said = json.loads(line)
                    where = (said.get("method"), said.get("path"))
                    found.setdefault(file.stem, []).append(" ".join(filter(None, (said["message"], *where))))
        if set(found) >= PARTS or time.monotonic() > end:
            return found
        time.sleep(0.2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--edge", default=settings.edge(), help="host:port of the edge (or EDGE)")
    arguments.add_argument("--logs", type=Path, default=Path(settings.logs()))
    arguments.add_argument("--at", default="Trattoria Lume", help="a restaurant that accepts by itself")
    given = arguments.parse_args()
    edge = Edge(given.edge, os.environ["TOKEN"])
    ours = f"order-{uuid.uuid4()}"
    request = {"requestId": str(uuid.uuid4()), "partySize": 2, "paymentToken": "tok_visa"}
    booked, headers = edge.ask(
        "/reservations", request | a_table(edge, given.at), **{"x-correlation-id": ours}
    )
    entries = timeline(edge, booked["reservation"]["reservationId"])
    print(f"our id             {ours}")
    print(f"in the answer      {headers['x-correlation-id']}")
    for part, lines in logged(given.logs, ours).items():
        for line in lines:
            print(f"log of {part:<12}{line}")
    for entry in entries:
        print(f"event              {entry['correlationId']}  {entry['kind']}")


if __name__ == "__main__":
    main()
