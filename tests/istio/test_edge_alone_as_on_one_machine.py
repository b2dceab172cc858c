"""What the edge on one machine does by itself, the edge of a cluster does too: the same bodies."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import httpx
import pytest

from tests.edge import test_identity_at_the_edge as identity
from tests.edge.stand_in import StandIn
from tests.edge.test_bad_http_requests import (  # noqa: F401
    test_a_type_of_nothing_does_not_count,
    test_answers_say_that_they_depend_on_the_page_that_asks,
    test_grpc_without_trailers_is_told_what_it_lacks,
    test_json_is_taken_however_it_is_spelt,
    test_values_of_a_query_may_be_percent_encoded,
    test_what_envoy_refuses_at_once_has_the_clients_id_if_it_is_one,
    test_what_http_allows_is_answered,
    test_what_says_it_is_grpc_and_cannot_be_does_not_exist,
)
from tests.edge.test_bodies import (  # noqa: F401
    test_another_shape_is_refused_by_its_field,
    test_no_field_of_a_request_can_be_misspelt_or_have_another_shape,
    test_no_way_leads_round_it,
    test_what_is_no_object_in_json_is_refused_with_the_place,
    test_what_the_json_mapping_of_proto3_allows_arrives,
)
from tests.edge.test_identity_at_the_edge import (  # noqa: F401
    test_a_broken_token_is_refused_whatever_the_case_of_its_scheme,
    test_a_second_header_hides_nobody_either,
    test_no_scheme_hides_who_may_not_come_through,
    test_only_people_get_through,
    test_the_scheme_may_be_written_in_any_case,
    test_the_service_gets_the_token_to_check_it_again,
    test_two_tokens_are_none,
    test_what_is_no_bearer_token_is_none,
    test_what_only_a_proxy_may_say_does_not_come_from_a_client,
)
from tests.edge.test_sizes import test_headers_above_the_limit_are_refused_by_the_edge  # noqa: F401
from tests.edge.test_verbs import test_a_wrong_verb_is_told_the_right_ones  # noqa: F401
from tests.istio.gateway import RunningGateway


@pytest.fixture(scope="module")
def stand_in(behind: StandIn) -> StandIn:
    return behind


@pytest.fixture(scope="module")
def edge_alone(tmp_path_factory: pytest.TempPathFactory, stand_in: StandIn) -> Iterator[RunningGateway]:
    edge = RunningGateway(stand_in, tmp_path_factory.mktemp("gateway-alone"))
    edge.start()
    yield edge
    edge.stop()


# Istio has patience of a minute with the clocks of others; the services have none.
BROKEN = [kind for kind in identity.BROKEN if kind != "expired"]


@pytest.mark.parametrize("path", ["/v1/reservations", "/v1/restaurants"], ids=["needs one", "open"])
@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_token_is_refused_in_json(
    alone: httpx.AsyncClient, stand_in: StandIn, kind: str, path: str
) -> None:
    await identity.test_a_broken_token_is_refused_in_json(alone, stand_in, kind, path)


@pytest.mark.parametrize("method", [identity.LIST, identity.OPEN], ids=["needs one", "open"])
@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_token_is_refused_in_grpc(
    channel_alone: grpc.aio.Channel, stand_in: StandIn, kind: str, method: str
) -> None:
    await identity.test_a_broken_token_is_refused_in_grpc(channel_alone, stand_in, kind, method)


@pytest.fixture
def http(alone: httpx.AsyncClient) -> httpx.AsyncClient:
    return alone


async def test_nobody_is_told_how_long_a_service_took(alone: httpx.AsyncClient) -> None:
    answer = await alone.get("/v1/restaurants")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-envoy-")]


@pytest.mark.parametrize(("path", "status"), [("/v1/restaurants", 200), ("/v1/timeline:watch", 401)])
async def test_no_connection_becomes_another(alone: httpx.AsyncClient, path: str, status: int) -> None:
    asked = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    answer = await alone.get(path, headers=asked | {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="})
    assert (answer.status_code, answer.headers.get("upgrade")) == (status, None)
