"""What a process measures, served to Prometheus. Every name starts with dinemesh_ and ends with its unit."""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server

# From a store commit (about 1 ms) to the longest deadline a client sets.
_CALL_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LAG_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 3600, 86_400)
_GROUP_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

CALLS = Counter("dinemesh_calls", "Calls answered, by method and gRPC status.", ["method", "code"])
CALL_SECONDS = Histogram(
    "dinemesh_call_seconds", "Time from the call to its answer.", ["method"], buckets=_CALL_SECONDS
)
CALLS_IN_FLIGHT = Gauge("dinemesh_calls_in_flight", "Calls being worked on.", ["method"])
REFUSALS = Counter("dinemesh_refusals", "Refusals, by method and reason.", ["method", "reason"])
STORE_QUEUE = Gauge("dinemesh_store_queue_changes", "Changes waiting for the writer.")
STORE_GROUP = Histogram("dinemesh_store_group_changes", "Changes committed together.", buckets=_GROUP_SIZES)
STORE_GROUP_RERUNS = Counter("dinemesh_store_group_reruns", "Groups rolled back and run again one by one.")
STORE_DOWN = Gauge("dinemesh_store_down", "1 while the database takes no changes, 0 while it does.")
OUTBOX_AGE = Gauge("dinemesh_outbox_oldest_unsent_seconds", "Age of the oldest event not yet sent.")
OUTBOX_UNSENT = Gauge("dinemesh_outbox_unsent_events", "Events not yet sent.")
INBOX_LAG = Histogram(
    "dinemesh_inbox_lag_seconds", "Time from an event to its effect here.", ["queue"], buckets=_LAG_SECONDS
)
INBOX_EVENTS = Counter(
    "dinemesh_inbox_events", "Events received, by what became of them.", ["queue", "outcome"]
)
DEAD_LETTERS = Gauge(
    "dinemesh_dead_letter_messages", "Messages in the dead-letter queue of a queue.", ["queue"]
)
BROKER_BLOCKS = Gauge(
    "dinemesh_broker_blocks", "1 while the broker takes no messages: it is short of memory or disk."
)
TOPOLOGY_LOSSES = Counter(
    "dinemesh_topology_losses",
    "Bindings and exchanges that were gone and declared again, by what was cut off: a queue or `exchange`.",
    ["what"],
)
PLACES_LOST = Counter(
    "dinemesh_places_lost",
    "Times that a subscriber's queue was full, so that it read the log instead.",
    ["queue"],
)
KEPT_ROWS = Gauge("dinemesh_kept_rows", "About how many rows a table has that is pruned.", ["table"])
KEPT_OLDEST = Gauge(
    "dinemesh_kept_oldest_seconds",
    "Age of the oldest row that pruning left, of those that may go once they are old enough.",
    ["what"],
)
PRUNED = Counter("dinemesh_pruned_rows", "Rows deleted because they were old.", ["what"])
LOG_BEGIN = Gauge(
    "dinemesh_log_begin_timestamp_seconds",
    "From when on a subscriber could read the log, which no longer has all events from before.",
    ["queue"],
)
WORKER_FAILURES = Counter("dinemesh_worker_failures", "Turns or runs of a worker that failed.", ["worker"])

_own_gauges: dict[str, Gauge] = {}


def gauge(name: str, doc: str) -> Gauge:
    """A service's own gauge, `dinemesh_<name>`; the same one when asked again."""
    full = name if name.startswith("dinemesh_") else f"dinemesh_{name}"
    if full not in _own_gauges:
        _own_gauges[full] = Gauge(full, doc)
    return _own_gauges[full]


class MetricsServer:
    """Serves /metrics from a thread of its own, so that a busy event loop can still be measured."""

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError if the port is taken."""
        served: tuple[WSGIServer, threading.Thread] = start_http_server(port, addr=host, registry=REGISTRY)
        self._server, self._thread = served
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
