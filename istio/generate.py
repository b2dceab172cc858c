"""The edge in Istio, out of the edge on one machine: edge/routes.yaml, filters.yaml and origins.yaml.

`python -m istio.generate` writes them. What Istio can say is said in its own words (routes, repetitions);
what it cannot goes into an EnvoyFilter as it stands in envoy/edge: translation of JSON, sizes, shapes of
bodies, rates, deadlines, the form of refusals. Tokens and roles are Istio's: request-authentication.yaml,
edge/authorization.yaml.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from local_mesh.envoy import configuration, contracts
from local_mesh.envoy.edge import EDGE, EdgeValues
from local_mesh.failure import Failure

FOLDER = Path(__file__).resolve().parent / "edge"

NAMESPACE = "istio-ingress"
PORTS = {"reservation": 8081, "deposit": 8082, "history": 8083, "restaurant": 8084}
READ_TRY = "3s"
"""What one try of a read has: three of them and their pauses fit into the default deadline of 10 s."""

# The filters of envoy/edge/filters.yaml that Istio does not bring, in their order. These stand before all of
# Istio's: tokens, roles and limits decide by the path, which the transcoder rewrites.
BEFORE_ISTIO = (
    "envoy.filters.http.header_mutation",
    "answers",
    "compression",
    "envoy.filters.http.cors",
    "envoy.filters.http.grpc_web",
    "route again",
    "limit of one address",
    "envoy.filters.http.buffer",
    "shape of bodies",
    "envoy.filters.http.grpc_json_transcoder",
    "grpc status",
    "limit of all",
    "read the scheme",
    "write the scheme",
)
# These need to know who it is. Istio's roles take a role that stands in a list, and a token without `sub` for
# none; ours are asked besides.
ROLES = "envoy.filters.http.rbac"
BEHIND_ISTIO = (ROLES, "limit of one")
ROUTER = "envoy.filters.http.router"

TIMES = ("max_stream_duration", "idle_timeout")
"""How long a call of a route may take, and how long if its client asks for it; how long it may rest."""

# What is not carried over, each for a reason; whatever is neither here nor there ends this program.
FILTERS_LEFT_OUT = (
    # A gateway's readiness is Istio's.
    "livez",
    "healthz",
    "healthz-reservation",
    "healthz-deposit",
    "healthz-restaurant",
    "healthz-history",
    # RequestAuthentication.
    "envoy.filters.http.jwt_authn",
    # Istio counts by itself.
    "envoy.filters.http.grpc_stats",
)
CONNECTION_LEFT_OUT = (
    "@type",
    # What Istio sets by itself, or by where the gateway stands (who is trusted for a client's address).
    "stat_prefix",
    "codec_type",
    "use_remote_address",
    "xff_num_trusted_hops",
    "internal_address_config",
    "forward_client_cert_details",
    # Carried over piece by piece.
    "local_reply_config",
    "route_config",
    "http_filters",
)
ROUTES_LEFT_OUT = (
    # The documents stay on one machine.
    "verbs of documents",
    "openapi",
    "start",
    "reference",
    "reference with a slash",
    "script of the reference",
    "Swagger UI",
    "style of Swagger UI",
)
LAST_ROUTE = "nothing"
"""What nobody has: behind every other."""

# Of a route to a service: itself, what it fits, what is done, and how often again. Repetitions go to another
# instance than before in Istio anyway.
OF_A_CALL = ("name", "match", "route", "typed_per_filter_config")
OF_ITS_ACTION = ("cluster", "timeout", "retry_policy", *TIMES)
OF_ITS_REPETITIONS = ("retry_on", "num_retries", "retry_host_predicate")
OF_THE_HOST = ("name", "domains", "routes", "typed_per_filter_config")

TOKEN_READ = {ROLES: 4, "limit of one": 1}
"""How often each of these looks at the claims of a token."""

CONNECTION = (
    "server_name",
    "early_header_mutation_extensions",
    "normalize_path",
    "merge_slashes",
    "path_with_escaped_slashes_action",
    "common_http_protocol_options",
    "max_request_headers_kb",
    "http_protocol_options",
    "http2_protocol_options",
    "request_headers_timeout",
    "request_timeout",
    "stream_idle_timeout",
    "delayed_close_timeout",
    # In place of Istio's own, whose lines are as long as what clients send (telemetry.yaml).
    "access_log",
)

NO_ROLES = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"

HEAD = """\
# Made by `python -m istio.generate` out of envoy/edge. Do not edit.
# {what}
"""

Doc = dict[str, Any]


def files() -> dict[Path, str]:
    """The files, as they ought to be."""
    edge = on_one_machine()
    return {
        FOLDER / "routes.yaml": HEAD.format(
            what="Each RPC that has an HTTP binding, by name; whatever is not named does not exist."
        )
        + _yaml(routes(edge)),
        FOLDER / "filters.yaml": HEAD.format(
            what="JSON, sizes, rates and refusals, with the words of envoy/edge and in its order."
        )
        + _yaml(filters(edge)),
        FOLDER / "origins.yaml": HEAD.format(
            what="Which pages may call from a browser: none, until ../origins or ../plain names them."
        )
        + _yaml(origins(edge)),
    }


def routes(edge: Doc) -> Doc:
    """The VirtualService: the routes of envoy/edge/routes that lead to a service. How long a call may take is
    in the EnvoyFilter: here it could not be said that a client may ask for more."""
    found = []
    for route in edge["routes"]:
        to = route.get("route", {}).get("cluster")
        if not _is_call(route):
            continue
        host = "reservation" if to == "reflection" else to
        destination: Doc = {"host": f"{host}.dinemesh.svc.cluster.local", "port": {"number": PORTS[host]}}
        if to == "reflection":
            destination["subset"] = "tools"
        retry = route["route"]["retry_policy"]
        one: Doc = {
            "name": route["name"],
            "match": [{"uri": {"exact": route["match"]["path"]}}],
            "route": [{"destination": destination}],
        }
        retries: Doc = {"attempts": retry["num_retries"], "retryOn": retry["retry_on"]}
        if "unavailable" in retry["retry_on"]:
            # What repeats after perTryTimeout, whoever notices first: reservation-to-deposit.yaml.
            again = f"{retry['retry_on']},gateway-error,deadline-exceeded"
            retries |= {"perTryTimeout": READ_TRY, "retryOn": again}
        one["retries"] = retries
        found.append(one)
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "dinemesh", "namespace": NAMESPACE},
        "spec": {"hosts": ["*"], "gateways": ["dinemesh"], "exportTo": ["."], "http": found},
    }


def filters(edge: Doc) -> Doc:
    """The EnvoyFilter. What is inserted first in the end stands behind what is inserted after it, so that
    lists go in backwards."""
    by_name = {one["name"]: one for one in edge["filters"]}
    _complete("filter", by_name, (*BEFORE_ISTIO, *BEHIND_ISTIO, ROUTER), FILTERS_LEFT_OUT)
    answered_here = list(_answered_here(edge["routes"]))
    _complete(
        "route",
        [one["name"] for one in edge["routes"]],
        [LAST_ROUTE, *(one["name"] for one in (*answered_here, *routes(edge)["spec"]["http"]))],
        ROUTES_LEFT_OUT,
    )
    _nothing_more("setting of the host", edge["host"], OF_THE_HOST)
    for one in edge["routes"]:
        if _is_call(one):
            _nothing_more(f"setting of {one['name']}", one, OF_A_CALL)
            _nothing_more(f"condition of {one['name']}", one["match"], ("path",))
            _nothing_more(f"action of {one['name']}", one["route"], OF_ITS_ACTION)
            again = one["route"]["retry_policy"]
            _nothing_more(f"word on repetitions of {one['name']}", again, OF_ITS_REPETITIONS)
    patches = [_connection(edge)]
    patches += [_filter(by_name[name], "INSERT_FIRST") for name in reversed(BEFORE_ISTIO)]
    patches.append(_filter(configuration.load(FOLDER / "tokens_end.yaml", {}), "INSERT_BEFORE"))
    patches += [_filter(of_istios_tokens(by_name[name]), "INSERT_BEFORE") for name in BEHIND_ISTIO]
    # Of Istio's own router.
    patches.append(_patch("HTTP_FILTER", "MERGE", by_name[ROUTER], _at_filter(ROUTER)))
    patches += [_route(one) for one in reversed(answered_here)]
    (last,) = (one for one in edge["routes"] if one["name"] == LAST_ROUTE)
    patches.append(_route(_for_everybody(last), "INSERT_AFTER"))
    patches += [
        _patch(
            "HTTP_ROUTE",
            "MERGE",
            _of_route(one),
            {"routeConfiguration": {"vhost": {"route": {"name": one["name"]}}}},
        )
        for one in edge["routes"]
        if "max_stream_duration" in one.get("route", {})
    ]
    return _envoy_filter("dinemesh", patches)


def origins(edge: Doc) -> Doc:
    """The EnvoyFilter that says which pages may call: none, until somebody names them."""
    (name,) = edge["host"]["typed_per_filter_config"]
    policy = {**edge["host"]["typed_per_filter_config"][name], "allow_origin_string_match": []}
    merged = _patch("VIRTUAL_HOST", "MERGE", {"typed_per_filter_config": {name: policy}})
    return _envoy_filter("dinemesh-origins", [merged])


def _envoy_filter(name: str, patches: list[Doc]) -> Doc:
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "workloadSelector": {"labels": {"istio": "ingressgateway"}},
            # After those of others, so that what is inserted first stands first.
            "priority": 10,
            "configPatches": patches,
        },
    }


def _of_route(one: Doc) -> Doc:
    """What a VirtualService cannot say of a route."""
    said: Doc = {"route": {name: one["route"][name] for name in TIMES if name in one["route"]}}
    if "typed_per_filter_config" in one:
        said["typed_per_filter_config"] = one["typed_per_filter_config"]
    return said


def _complete(what: str, there: Iterable[str], carried: Iterable[str], left_out: Iterable[str]) -> None:
    """Raises Failure where something of envoy/edge was forgotten, or is no more."""
    named = {*carried, *left_out}
    _nothing_more(what, there, named)
    if gone := sorted(named - set(there)):
        raise Failure(f"envoy/edge has no {what} of this name any more: {gone}")


def _nothing_more(what: str, there: Iterable[str], named: Iterable[str]) -> None:
    """Raises Failure where something of envoy/edge was forgotten."""
    if forgotten := sorted(set(there) - set(named)):
        raise Failure(f"envoy/edge has a {what} that is neither carried over nor left out: {forgotten}")


def _is_call(route: Doc) -> bool:
    """Whether it leads to a service, by one path."""
    return "path" in route["match"] and route.get("route", {}).get("cluster") in (*PORTS, "reflection")


def on_one_machine() -> Doc:
    """envoy/edge.yaml with the values that it has unless somebody says otherwise."""
    nowhere = Path("/")
    values = EdgeValues(
        port=0,
        admin_port=0,
        reservation=["0.0.0.0:0"],
        deposit=["0.0.0.0:0"],
        restaurant=["0.0.0.0:0"],
        history=["0.0.0.0:0"],
        jwks_file=nowhere,
        descriptor_file=nowhere,
    )
    config = _with_contracts(configuration.load(EDGE, values.as_mapping()))
    (listener,) = (one for one in config["static_resources"]["listeners"] if one["name"] == "edge")
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    return {
        "clusters": config["static_resources"]["clusters"],
        "manager": manager,
        "filters": manager["http_filters"],
        "host": host,
        "routes": host["routes"],
    }


def _with_contracts(config: Any) -> Any:
    """The same with the contracts in it, and not in a file: a gateway has none of ours."""
    if isinstance(config, list):
        return [_with_contracts(one) for one in config]
    if not isinstance(config, dict):
        return config
    changed = {name: _with_contracts(one) for name, one in config.items() if name != "proto_descriptor"}
    if "proto_descriptor" in config:
        changed["proto_descriptor_bin"] = base64.b64encode(contracts.descriptor_set()).decode()
    return changed


def _connection(edge: Doc) -> Doc:
    manager = edge["manager"]
    _complete("setting of connections", manager, CONNECTION, CONNECTION_LEFT_OUT)
    replies = {**manager["local_reply_config"]}
    replies["mappers"] = [*configuration.load(FOLDER / "no_token.yaml", {})["mappers"], *replies["mappers"]]
    merged = {name: manager[name] for name in CONNECTION} | {"local_reply_config": replies}
    kind = manager["@type"]
    return _patch(
        "NETWORK_FILTER",
        "MERGE",
        {"typed_config": {"@type": kind, **merged}},
        {"listener": {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}}},
    )


def of_istios_tokens(one: Doc) -> Doc:
    """The same of Istio's check of tokens, which keeps the claims under another key. Its own roles have the
    name that ours have."""
    text = json.dumps(one)
    found = text.count('{"key": "token"}')
    if not found:
        raise Failure(f"{one['name']} does not look at the claims of a token any more")
    if found != TOKEN_READ[one["name"]]:
        raise Failure(f"{one['name']} looks at the claims {found} times, not {TOKEN_READ[one['name']]}")
    theirs: Doc = json.loads(text.replace('{"key": "token"}', '{"key": "payload"}'))
    return theirs | {"name": "roles" if one["name"] == ROLES else one["name"]}


def _filter(one: Doc, operation: str) -> Doc:
    return _patch("HTTP_FILTER", operation, one, _at_filter(ROUTER if operation == "INSERT_BEFORE" else ""))


def _at_filter(name: str) -> Doc:
    wanted: Doc = {"name": "envoy.filters.network.http_connection_manager"}
    if name:
        wanted["subFilter"] = {"name": name}
    return {"listener": {"filterChain": {"filter": wanted}}}


def _route(one: Doc, operation: str = "INSERT_FIRST") -> Doc:
    return _patch("HTTP_ROUTE", operation, one, {"routeConfiguration": {"vhost": {}}})


def _for_everybody(one: Doc) -> Doc:
    """Istio's roles know only paths of gRPC."""
    roles = {ROLES: {"@type": NO_ROLES}}
    return {**one, "typed_per_filter_config": one["typed_per_filter_config"] | roles}


def _answered_here(found: Iterable[Doc]) -> Iterable[Doc]:
    """Routes for JSON as it comes, and for verbs and paths that are answered without a service."""
    for one in found:
        if "path" in one["match"] or one["name"] in (*ROUTES_LEFT_OUT, LAST_ROUTE):
            continue  # one of a service, none of a cluster's, or what nobody has
        if "direct_response" in one:
            yield _for_everybody(one)
        elif one["route"]["cluster"] == "nowhere":
            # Istio's cluster without hosts.
            yield {**one, "route": {**one["route"], "cluster": "BlackHoleCluster"}}


def _patch(where: str, operation: str, value: Mapping[str, Any], match: Doc | None = None) -> Doc:
    return {
        "applyTo": where,
        "match": {"context": "GATEWAY", **(match or {})},
        "patch": {"operation": operation, "value": dict(value)},
    }


class _Dumper(yaml.SafeDumper):
    """Writes what has several lines (scripts) as such."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(document: Doc) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=110)


if __name__ == "__main__":
    try:
        for file, text in files().items():
            file.write_text(text)
    except Failure as failure:
        sys.exit(str(failure))
