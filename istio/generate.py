"""The edge in Istio, out of the edge on one machine: edge/routes.yaml and edge/filters.yaml from envoy/.

`python -m istio.generate` writes them. What Istio can say is said in its own words (routes, times,
repetitions); what it cannot goes into an EnvoyFilter as it stands in envoy/edge: translation of JSON, sizes,
rates, and the shape of refusals. Tokens and roles are Istio's: request-authentication.yaml,
edge/authorization.yaml.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from local_mesh import envoy, envoy_yaml

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
    "envoy.filters.http.grpc_json_transcoder",
    "grpc status",
    "limit of all",
    "read the scheme",
    "write the scheme",
)
# It needs to know who it is.
BEHIND_ISTIO = ("limit of one",)

# What Istio sets by itself, or by where the gateway stands (who is trusted for a client's address).
CONNECTION = (
    "server_name",
    "early_header_mutation_extensions",
    "normalize_path",
    "merge_slashes",
    "path_with_escaped_slashes_action",
    "common_http_protocol_options",
    "max_request_headers_kb",
    "http2_protocol_options",
    "request_headers_timeout",
    "request_timeout",
    "stream_idle_timeout",
    "delayed_close_timeout",
)

NO_ROLES = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"

HEAD = """\
# Made by `python -m istio.generate` out of envoy/edge. Do not edit.
# {what}
"""

Doc = dict[str, Any]


def files() -> dict[Path, str]:
    """The two files, as they ought to be."""
    edge = _edge()
    return {
        FOLDER / "routes.yaml": HEAD.format(
            what="Each RPC that has an HTTP binding, by name; whatever is not named does not exist."
        )
        + _yaml(routes(edge)),
        FOLDER / "filters.yaml": HEAD.format(
            what="JSON, sizes, rates and refusals, with the words of envoy/edge and in its order."
        )
        + _yaml(filters(edge)),
    }


def routes(edge: Doc) -> Doc:
    """The VirtualService: the routes of envoy/edge/routes that lead to a service."""
    values = edge["values"]
    found = []
    for route in edge["routes"]:
        to = route.get("route", {}).get("cluster")
        if "path" not in route["match"] or to not in (*PORTS, "reflection"):
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
        if to == "reflection":
            one["timeout"] = f"{values.longest_reflection_seconds}s"
        elif "idle_timeout" not in route["route"]:
            # None for a watch: it lasts, and the services end each of theirs.
            one["timeout"] = f"{values.default_deadline_seconds}s"
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
    patches = [_connection(edge)]
    patches += [_filter(by_name[name], "INSERT_FIRST") for name in reversed(BEFORE_ISTIO)]
    patches += [_filter(by_name[name], "INSERT_BEFORE") for name in BEHIND_ISTIO]
    patches += [_route(one) for one in reversed(list(_answered_here(edge["routes"])))]
    patches.append(
        _patch("VIRTUAL_HOST", "MERGE", {"typed_per_filter_config": edge["host"]["typed_per_filter_config"]})
    )
    patches += [
        _patch(
            "HTTP_ROUTE",
            "MERGE",
            {"typed_per_filter_config": one["typed_per_filter_config"]},
            {"routeConfiguration": {"vhost": {"route": {"name": one["name"]}}}},
        )
        for one in edge["routes"]
        if one.get("route", {}).get("cluster") == "reflection"
    ]
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "dinemesh", "namespace": NAMESPACE},
        "spec": {
            "workloadSelector": {"labels": {"istio": "ingressgateway"}},
            # After those of others, so that what is inserted first stands first.
            "priority": 10,
            "configPatches": patches,
        },
    }


def _edge() -> Doc:
    """envoy/edge.yaml with the values that it has unless somebody says otherwise."""
    nowhere = Path("/")
    values = envoy.EdgeValues(
        port=0,
        admin_port=0,
        reservation=["0.0.0.0:0"],
        deposit=["0.0.0.0:0"],
        restaurant=["0.0.0.0:0"],
        history=["0.0.0.0:0"],
        jwks_file=nowhere,
        descriptor_file=nowhere,
    )
    config = _with_contracts(envoy_yaml.load(envoy.EDGE, values.as_mapping()))
    (edge,) = (one for one in config["static_resources"]["listeners"] if one["name"] == "edge")
    manager = edge["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    return {
        "values": values,
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
        changed["proto_descriptor_bin"] = base64.b64encode(envoy.descriptor_set()).decode()
    return changed


def _connection(edge: Doc) -> Doc:
    manager = edge["manager"]
    replies = {**manager["local_reply_config"]}
    replies["mappers"] = [*envoy_yaml.load(FOLDER / "no_token.yaml", {})["mappers"], *replies["mappers"]]
    merged = {name: manager[name] for name in CONNECTION} | {"local_reply_config": replies}
    kind = manager["@type"]
    return _patch(
        "NETWORK_FILTER",
        "MERGE",
        {"typed_config": {"@type": kind, **merged}},
        {"listener": {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}}},
    )


def _filter(one: Doc, operation: str) -> Doc:
    # Istio keeps the token's claims under another key.
    theirs = json.loads(json.dumps(one).replace('{"key": "token"}', '{"key": "payload"}'))
    wanted: Doc = {"name": "envoy.filters.network.http_connection_manager"}
    if operation == "INSERT_BEFORE":
        wanted["subFilter"] = {"name": "envoy.filters.http.router"}
    return _patch("HTTP_FILTER", operation, theirs, {"listener": {"filterChain": {"filter": wanted}}})


def _route(one: Doc) -> Doc:
    return _patch("HTTP_ROUTE", "INSERT_FIRST", one, {"routeConfiguration": {"vhost": {}}})


def _answered_here(found: Iterable[Doc]) -> Iterable[Doc]:
    """Routes for JSON as it comes, and for verbs and paths that are answered without a service."""
    for one in found:
        if "path" in one["match"] or one["match"] == {"prefix": "/"} or "documents" in one["name"]:
            continue  # services; what nobody has (Istio says 404); the documents, which stay on one machine
        if "direct_response" in one:
            # Istio's roles know only paths of gRPC.
            roles = {"envoy.filters.http.rbac": {"@type": NO_ROLES}}
            yield {**one, "typed_per_filter_config": one["typed_per_filter_config"] | roles}
        elif one["route"]["cluster"] == "nowhere":
            # Istio's cluster without hosts.
            yield {**one, "route": {**one["route"], "cluster": "BlackHoleCluster"}}


def _patch(where: str, operation: str, value: Mapping[str, Any], match: Doc | None = None) -> Doc:
    return {
        "applyTo": where,
        "match": {"context": "GATEWAY", **(match or {})},
        "patch": {"operation": operation, "value": dict(value)},
    }


def _yaml(document: Doc) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=110)


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text)
