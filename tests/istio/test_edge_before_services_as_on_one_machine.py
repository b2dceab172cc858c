"""Clients of a cluster's edge get what those of one machine get: the same bodies, before real services."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_mesh.broker import RunningBroker
from tests.edge.test_grpc_web import (  # noqa: F401
    test_a_refusal_is_one_of_grpc_whoever_refuses,
    test_a_table_is_booked,
    test_a_watch_has_all_its_messages_and_its_end,
    test_the_text_form_works_too,
)
from tests.edge.test_headers import (  # noqa: F401
    test_a_grpc_client_may_compress,
    test_a_header_that_grpc_does_not_understand_changes_nothing,
)
from tests.edge.test_limits import (  # noqa: F401
    SLOW,
    test_a_change_that_the_limit_refuses_is_not_made,
    test_a_customer_over_the_rate_is_told_when_to_come_again_and_nobody_else_is_touched,
    test_json_and_grpc_of_one_person_draw_on_the_same_limit,
)
from tests.edge.test_one_port import (  # noqa: F401
    test_a_table_is_booked_by_json_and_read_by_grpc_and_the_other_way_round,
)
from tests.edge.test_sizes import (  # noqa: F401
    test_a_season_of_slots_is_opened_by_one_call_and_told_in_json,
    test_headers_just_below_the_limit_reach_the_service,
)
from tests.edge.test_watches import (  # noqa: F401
    test_a_change_is_told_at_once,
    test_a_quiet_watch_says_that_it_is_alive,
    test_a_reservation_is_watched_from_its_booking_to_its_end,
    test_a_watch_ends_with_its_token,
    test_a_watch_that_is_refused_is_no_stream,
    test_staff_watch_the_bookings_of_their_restaurant,
)
from tests.istio.gateway import RunningGateway, lasting
from tests.support.mesh import RunningMesh


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, broker: RunningBroker) -> Iterator[RunningMesh]:
    mesh = RunningMesh(tmp_path_factory.mktemp("mesh-behind-the-gateway"), broker.fresh_url())
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, mesh: RunningMesh) -> Iterator[RunningGateway]:
    edge = RunningGateway(mesh, tmp_path_factory.mktemp("gateway"))
    edge.start()
    yield edge
    edge.stop()


@pytest.fixture(scope="module")
def lasting_edge(tmp_path_factory: pytest.TempPathFactory, mesh: RunningMesh) -> Iterator[RunningGateway]:
    """It takes little of one person; buckets of different people have nothing in common."""
    edge = RunningGateway(mesh, tmp_path_factory.mktemp("lasting-gateway"), mutate=lasting, **SLOW)
    edge.start()
    yield edge
    edge.stop()


@pytest.fixture
def own_edge(mesh: RunningMesh, tmp_path: Path) -> Iterator[Callable[..., RunningGateway]]:
    started: list[RunningGateway] = []

    def start(**rates: Any) -> RunningGateway:
        started.append(RunningGateway(mesh, tmp_path / f"gateway-{len(started)}", **rates))
        started[-1].start()
        return started[-1]

    yield start
    for edge in started:
        edge.stop()
