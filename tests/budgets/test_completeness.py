"""Nothing that waits, limits or repeats stands in code or YAML without a row in docs/BUDGETS.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.budgets import edge, mesh, numbers, services, sources
from tests.istio import shipped
from tests.support.process import ROOT

PACKAGES = ("dinemesh/kit", "reservation_svc", "deposit_svc", "restaurant_svc", "history_svc", "local_mesh")
NUMBER = re.compile(
    r"(^|_)(SECONDS|MS|TIMEOUT|DEADLINE|LIMIT|ATTEMPTS|TRIES|RETRIES|BATCH|PREFETCH|INTERVAL|MISSES|LEASE|GROUP)(_|$)",
    re.IGNORECASE,
)

NO_BUDGETS = {
    "deposit_svc.sandbox": "stands in for somebody else's provider, and is told how slow to be",
    "local_mesh.bootstrap": "installs",
    "local_mesh.debian": "installs",
    "local_mesh.golang": "builds",
    "local_mesh.demo": "tells a story",
    "local_mesh.dialogue": "a client, with deadlines of its own",
    "local_mesh.broker": "of tests and `make up`: how long RabbitMQ may take to start and to stop",
    "local_mesh.tokens": "how long tokens are good",
    "local_mesh.commands.QUICK_SECONDS": "what is not worth a line",
    "local_mesh.envoy.process.POLL_SECONDS": "looks whether a process has ended",
    "local_mesh.supervision.POLL_SECONDS": "the same",
    "local_mesh.supervision.GROUP": "a name",
    "dinemesh.kit.telemetry": "buckets of histograms",
    "restaurant_svc.domain": "rules of restaurants, in the contract",
    "history_svc.main.CONNECT_SECONDS": "of the operator's rebuild",
    "history_svc.usecases.REMAKE_BATCH": "the same",
}
"""Modules and constants that are not on the way or beside it, each for a reason."""


def constants() -> Iterator[str]:
    """Numbers at the top of modules whose names say that they are budgets."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if "migrations" not in file.parts:
                module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                yield from (f"{module}.{name}" for name in numbers_in(file.read_text()))


def numbers_in(text: str) -> Iterator[str]:
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and target.id.isupper() and NUMBER.search(target.id):
                yield target.id


def settings() -> Iterator[str]:
    """Numbers that somebody may set, but for ports and the like."""
    for module in (services.EVERY, services.RESERVATION, services.DEPOSIT, services.RESTAURANT):
        for name, field in sources.fields(module).items():
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                yield f"{module}.{name}"


NO_TIMES = {
    "dinemesh.kit.settings.reader_threads",  # work, and no wait
    "reservation_svc.settings.horizon_days",  # a rule, in the contract
}


def missing(found: Iterable[str]) -> list[str]:
    numbers.numbers()  # reads them all
    return [
        one
        for one in found
        if one not in sources.READ
        and one not in NO_TIMES
        and not any(one == known or one.startswith(f"{known}.") for known in NO_BUDGETS)
    ]


def test_every_constant_that_is_a_budget_has_a_row() -> None:
    found = list(constants())
    assert len(found) > 60
    assert missing(found) == []


def test_every_setting_that_is_a_budget_has_a_row() -> None:
    found = list(settings())
    assert len(found) > 25
    assert missing(found) == []


def test_one_that_somebody_adds_would_be_missed() -> None:
    added = 'HOPE_SECONDS = 3.0\n_TRIES: int = 4\nNAMES = ("a",)\nlocal_ms = 5\n'
    assert list(numbers_in(added)) == ["HOPE_SECONDS", "_TRIES"]
    assert missing(["dinemesh.kit.bus.HOPE_SECONDS"]) == ["dinemesh.kit.bus.HOPE_SECONDS"]


def test_every_exception_is_still_there() -> None:
    for one in NO_BUDGETS:
        path = ROOT / Path(*one.split("."))
        module, _, name = one.rpartition(".")
        assert path.is_dir() or path.with_suffix(".py").is_file() or f"{module}.{name}" in set(constants())


KEYS = re.compile(
    r"timeout|interval|duration|_time$|Time$|limit|max_|min_|Max|Min|most|retries|Retries|attempts|tries|threshold"
    r"|Threshold|Seconds$|period|grace|bucket|tokens|keepalive|probes|percent|Percent|ejection|Errors|consecutive"
)
KNOWN = {
    "envoy, with rows": """
        connect_timeout timeout max_grpc_timeout per_try_timeout num_retries max_stream_duration
        grpc_timeout_header_max idle_timeout stream_idle_timeout request_timeout request_headers_timeout
        kill_timeout interval no_traffic_interval unhealthy_threshold healthy_threshold
        max_requests max_pending_requests max_retries max_connections consecutive_gateway_failure
        consecutive_5xx base_ejection_time max_ejection_percent max_concurrent_streams max_request_bytes
        max_request_headers_kb max_headers_count max_tokens tokens_per_fill
        max_active_downstream_connections""",
    "envoy, whether one of them counts at all": """
        enforcing_consecutive_gateway_failure enforcing_consecutive_5xx enforcing_success_rate
        fill_interval""",
    "envoy, memory and what keeps it": """
        max_dynamic_descriptors per_connection_buffer_limit_bytes max_heap_size_bytes refresh_interval
        minimum_account_to_track_power_of_two max_direct_response_body_size_bytes max_response_body_size
        initial_stream_window_size initial_connection_window_size min_content_length
        threshold saturation_threshold scaling_threshold""",
    "envoy, keys of tokens: a file of this machine, read beside the calls": """
        cache_duration failed_refetch_duration clock_skew_seconds""",
    "envoy, the end of a connection that has no call any more, and of a choice": """
        delayed_close_timeout host_selection_retry_max_attempts""",
    "istio, with rows": """
        connectTimeout http2MaxRequests http1MaxPendingRequests maxRetries maxConnections
        consecutiveGatewayErrors consecutive5xxErrors baseEjectionTime maxEjectionPercent minHealthPercent
        attempts perTryTimeout probes""",
}
"""Names of fields, by what they are."""


def leaves(found: Any) -> Iterator[str]:
    """The names of all numbers and times of a document."""
    if isinstance(found, dict):
        for name, value in found.items():
            is_time = isinstance(value, str) and re.fullmatch(r"[\d.]+(ms|s)", value)
            if (isinstance(value, int | float) and not isinstance(value, bool)) or is_time:
                yield str(name)
            else:
                yield from leaves(value)
    elif isinstance(found, list):
        for one in found:
            yield from leaves(one)


def unknown(documents: Iterable[Any]) -> set[str]:
    known = {name for names in KNOWN.values() for name in names.split()}
    return {name for one in documents for name in leaves(one) if KEYS.search(name)} - known


@pytest.mark.parametrize("where", ["envoy/edge.yaml", "envoy/policy.yaml", "istio"])
def test_every_kind_of_number_in_the_yaml_is_one_that_has_rows(where: str) -> None:
    found: list[Any] = {
        "envoy/edge.yaml": [edge.resources()],
        "envoy/policy.yaml": [mesh.resources()],
        # What is made of envoy/edge has its names.
        "istio": shipped.documents(),
    }[where]
    assert len({name for one in found for name in leaves(one)}) > 10
    assert unknown(found) == set()


def test_a_kind_that_somebody_adds_would_be_missed() -> None:
    assert unknown([{"route": {"per_try_idle_timeout": "1s"}}]) == {"per_try_idle_timeout"}
    assert unknown([{"outlierDetection": {"consecutiveLocalOriginFailures": 5}}]) == {
        "consecutiveLocalOriginFailures"
    }
