"""The goldens are of the files that are shipped, and say what the policy promises."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deposit_svc.settings import DepositSettings
from istio import generate
from local_mesh.failure import Failure
from reservation_svc.clients.deposit import HEALTH_SECONDS
from reservation_svc.settings import ReservationSettings
from tests.istio import shipped
from tests.istio.gateway import manager
from tests.istio.proxy import DEPOSIT, cluster_of
from tests.policy.ways import in_camel_case

PORTS = {"reservation": 8081, "deposit": 8082, "history": 8083, "restaurant": 8084}


def test_the_goldens_are_of_these_files() -> None:
    assert shipped.HASHES.read_text() == shipped.hashes(), (
        "istio/, what istiod sees of k8s/, istiod itself or a golden has changed: `make mesh-goldens`, and"
        " look at what it changed"
    )


def test_the_edge_in_istio_is_made_of_the_edge_on_one_machine() -> None:
    for file, text in generate.files().items():
        assert file.read_text() == text, f"{file.name}: python -m istio.generate"


def named(proxy: str, name: str) -> Any:
    """A route of a proxy; its action."""
    found = [
        route["route"]
        for config in shipped.golden(proxy)["routes"]
        for host in config["virtualHosts"]
        for route in host["routes"]
        if route.get("name") == name
    ]
    assert found, f"{proxy} has no route {name}"
    assert all(one == found[0] for one in found)
    return found[0]


def cluster(proxy: str, name: str) -> Any:
    (found,) = (one for one in shipped.golden(proxy)["clusters"] if one["name"] == name)
    return found


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def setting(settings: type, name: str) -> Any:
    return settings.model_fields[name].default  # type: ignore[attr-defined]


def test_nobody_repeats_a_charge() -> None:
    assert "retryPolicy" not in named("reservation", "charge")


def test_the_times_of_a_charge_fit_into_each_other() -> None:
    route = seconds(named("reservation", "charge")["timeout"])
    deadline = setting(ReservationSettings, "deposit_deadline_ms") / 1000
    # Envoy has to notice before reservation gives up, and hands its own time on as deposit's deadline.
    assert route <= deadline - 0.5
    assert seconds(named("reservation", "charge")["maxGrpcTimeout"]) == route
    # Nobody takes a charge for abandoned while its caller may still wait.
    assert route < setting(DepositSettings, "charge_timeout_ms") / 1000
    assert deadline < setting(DepositSettings, "pending_settle_seconds")


@pytest.mark.parametrize(("name", "caller"), [("reads", None), ("health", HEALTH_SECONDS)])
def test_three_tries_of_a_read_fit_into_its_time(name: str, caller: float | None) -> None:
    route = named("reservation", name)
    policy = route["retryPolicy"]
    assert policy["numRetries"] == 2
    assert {"gateway-error", "deadline-exceeded", "unavailable"} <= set(policy["retryOn"].split(","))
    assert 3 * seconds(policy["perTryTimeout"]) < seconds(route["timeout"])
    assert caller is None or seconds(route["timeout"]) < caller


def test_ejection_is_possible_and_only_for_broken_instances() -> None:
    policy = cluster("reservation", DEPOSIT)
    outlier = policy["outlierDetection"]
    assert outlier["consecutiveGatewayFailure"] == 5
    assert outlier["enforcingConsecutiveGatewayFailure"] == 100
    assert outlier["consecutive5xx"] == outlier["enforcingConsecutive5xx"] == 0
    assert outlier["enforcingSuccessRate"] == 0
    # Of two, one; and a second one that is sick stays.
    assert outlier["maxEjectionPercent"] == 50
    assert seconds(outlier["interval"]) <= 5
    assert policy["commonLbConfig"]["healthyPanicThreshold"] == {}, "zero: never to those who were ejected"
    assert "localityWeightedLbConfig" not in policy["commonLbConfig"]


def test_the_limit_of_a_pod_lies_below_what_deposit_lets_in() -> None:
    (limits,) = cluster("reservation", DEPOSIT)["circuitBreakers"]["thresholds"]
    assert limits["maxRequests"] == 128
    assert limits["maxRequests"] < setting(DepositSettings, "charges_in_flight_limit")
    # Reservation queues what is more; that the mesh refuses it is for several pods behind one proxy.
    assert limits["maxRequests"] > setting(ReservationSettings, "charges_at_once")
    # What waits for the first connection must not be what is refused.
    assert limits["maxPendingRequests"] > setting(ReservationSettings, "charges_at_once")


@pytest.mark.parametrize("service", PORTS)
def test_a_client_of_the_edge_ejects_nobody(service: str) -> None:
    policy = cluster("edge", cluster_of(service, PORTS[service]))
    assert "outlierDetection" not in policy
    (limits,) = policy["circuitBreakers"]["thresholds"]
    (ours,) = (one for one in _edge_clusters() if one["name"] == service)
    (there,) = ours["circuit_breakers"]["thresholds"]
    assert limits == {
        "maxConnections": there["max_connections"],
        "maxPendingRequests": there["max_pending_requests"],
        "maxRequests": there["max_requests"],
        "maxRetries": there["max_retries"],
    }


@pytest.mark.parametrize("service", PORTS)
def test_every_service_has_two_instances_behind_the_edge_and_on_its_own_port(service: str) -> None:
    (found,) = (
        one
        for one in shipped.golden("edge")["endpoints"]
        if one["clusterName"] == cluster_of(service, PORTS[service])
    )
    hosts = [host["endpoint"] for place in found["endpoints"] for host in place["lbEndpoints"]]
    assert [host["address"]["socketAddress"]["portValue"] for host in hosts] == [PORTS[service]] * 2


def test_at_the_edge_translation_comes_before_every_decision() -> None:
    (heard,) = shipped.golden("edge")["listeners"]
    names = [one["name"] for one in heard["filterChains"][0]["filters"][0]["typedConfig"]["httpFilters"]]
    there = names.index
    assert there("envoy.filters.http.grpc_json_transcoder") < there("envoy.filters.http.jwt_authn")
    assert there("envoy.filters.http.jwt_authn") < there("envoy.filters.http.rbac") < there("limit of one")
    assert there("envoy.filters.http.buffer") < there("envoy.filters.http.grpc_json_transcoder")


def lacks(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Where an Envoy's configuration has not what a file of ours says, field by field."""
    if isinstance(wanted, dict):
        for name, value in wanted.items():
            if name == "proto_descriptor_bin":
                continue  # the goldens say where the contracts stand, and not what is in them
            # The keys of a line of a log are ours.
            plain = "." in name or name.startswith("@") or where.endswith(".jsonFormat")
            field = name if plain else in_camel_case(name)
            if not isinstance(found, dict) or field not in found:
                # What is false, zero or empty is left out, and of words the first.
                if value not in (False, 0, "", [], {}, "ALLOW", "APPEND_IF_EXISTS_OR_ADD"):
                    yield f"{where}.{field} is missing"
            else:
                yield from lacks(found[field], value, f"{where}.{field}")
    elif isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            yield f"{where} has not {len(wanted)} items"
        else:
            for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
                yield from lacks(one, other, f"{where}[{place}]")
    elif str(found) != str(wanted):
        yield f"{where} is {found}, not {wanted}"


def gateway() -> tuple[Any, list[Any]]:
    """What istiod made of connections at the edge, and of filters."""
    made = manager(shipped.golden("edge"))
    return made, made["httpFilters"]


EDGE = generate.on_one_machine()
CARRIED = {one["name"]: one for one in EDGE["filters"] if one["name"] not in generate.FILTERS_LEFT_OUT}


@pytest.mark.parametrize("name", CARRIED)
def test_the_gateway_has_each_filter_of_the_edge_word_for_word(name: str) -> None:
    wanted = CARRIED[name]
    if name in generate.BEHIND_ISTIO:
        wanted = generate.of_istios_tokens(wanted)
    # Before Istio's own, where it has one of the same name.
    found = next(one for one in gateway()[1] if one["name"] == wanted["name"])
    assert list(lacks(found["typedConfig"], wanted["typed_config"])) == []
    assert list(lacks({}, wanted["typed_config"])) != []


def test_the_filters_stand_in_the_order_of_the_edge_and_istios_before_what_knows_people() -> None:
    names = [one["name"] for one in gateway()[1]]
    ours = ["roles" if one == generate.ROLES else one for one in CARRIED]
    assert [one for one in dict.fromkeys(names) if one in ours] == ours
    assert names.index("envoy.filters.http.rbac") < names.index("tokens end") < names.index("roles")


@pytest.mark.parametrize("name", generate.CONNECTION)
def test_the_gateway_takes_connections_as_the_edge_does(name: str) -> None:
    found, _ = gateway()
    assert list(lacks(found, {name: EDGE["manager"][name]})) == []


def test_the_gateway_refuses_in_the_words_of_the_edge_and_gives_each_call_its_time() -> None:
    found, _ = gateway()
    ours = found["localReplyConfig"]["mappers"]
    wanted = EDGE["manager"]["local_reply_config"]["mappers"]
    assert list(lacks(ours[-len(wanted) :], wanted)) == []
    timed = [one for one in EDGE["routes"] if "max_stream_duration" in one.get("route", {})]
    assert len(timed) > 20
    for one in timed:
        times = {key: one["route"][key] for key in generate.TIMES if key in one["route"]}
        assert list(lacks(named("edge", one["name"]), times, one["name"])) == []


def test_what_is_forgotten_of_the_edge_ends_the_generator() -> None:
    for where, forgotten in (
        ("filters", {"name": "a new filter", "typed_config": {}}),
        ("routes", {"name": "a new route", "match": {"path": "/new"}, "direct_response": {"status": 200}}),
    ):
        with pytest.raises(Failure, match="neither carried over nor left out"):
            generate.filters({**EDGE, where: [*EDGE[where], forgotten]})
    with pytest.raises(Failure, match="setting of connections that is neither"):
        generate.filters({**EDGE, "manager": {**EDGE["manager"], "strip_any_host_port": True}})
    fewer = [one for one in EDGE["filters"] if one["name"] != "compression"]
    with pytest.raises(Failure, match="no filter of this name any more"):
        generate.filters({**EDGE, "filters": fewer})
    with pytest.raises(Failure, match="does not look at the claims"):
        generate.of_istios_tokens(CARRIED["limit of all"])


@pytest.mark.parametrize(
    "change",
    [
        lambda route: route.update(response_headers_to_add=[]),
        lambda route: route["match"].update(headers=[{"name": "x", "present_match": True}]),
        lambda route: route["route"].update(hash_policy=[]),
        lambda route: route["route"]["retry_policy"].update(per_try_timeout="1s"),
    ],
    ids=["a setting", "a condition", "an action", "a word on repetitions"],
)
def test_what_is_forgotten_of_a_call_ends_the_generator(change: Callable[[Any], None]) -> None:
    routes = copy.deepcopy(EDGE["routes"])
    change(next(one for one in routes if one["name"] == "GetReservation"))
    with pytest.raises(Failure, match="of GetReservation that is neither"):
        generate.filters({**EDGE, "routes": routes})


def test_what_is_forgotten_of_the_host_ends_the_generator() -> None:
    with pytest.raises(Failure, match="setting of the host that is neither"):
        generate.filters({**EDGE, "host": {**EDGE["host"], "request_headers_to_remove": ["x"]}})


def test_claims_are_looked_for_where_istio_has_them_and_as_often_as_before() -> None:
    """In text, where one place too few is one that Istio never fills."""
    of_one = copy.deepcopy(next(one for one in EDGE["filters"] if one["name"] == "limit of one"))
    (action,) = of_one["typed_config"]["rate_limits"][0]["actions"]
    action["metadata"]["metadata_key"]["path"].insert(0, {"key": "token"})
    with pytest.raises(Failure, match="2 times, not 1"):
        generate.of_istios_tokens(of_one)


def test_the_edge_repeats_reads_and_nothing_that_reached_a_service() -> None:
    every = [route["name"] for route in shipped.document("VirtualService", "dinemesh")["spec"]["http"]]
    for name in every:
        policy = named("edge", name)["retryPolicy"]
        again = set(policy["retryOn"].split(","))
        if name.startswith(("Get", "List")) or name == "health":
            assert again >= {"unavailable", "gateway-error", "deadline-exceeded"}, name
            longest = named("edge", name)["maxStreamDuration"]["maxStreamDuration"]
            assert 3 * seconds(policy["perTryTimeout"]) < seconds(longest), name
        else:
            assert again == {"connect-failure", "refused-stream"}, name


def _edge_clusters() -> list[Any]:
    found: list[Any] = EDGE["clusters"]
    return found
