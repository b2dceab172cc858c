"""Who gets through the edge, with which token, and what the services hear of it.

They check once more themselves; here a stand-in stands behind the edge, so that nobody but Envoy refuses.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deposit_svc import servicer as deposit
from dinemesh.kit.interceptors import ANYONE
from dinemesh.reservation.v1 import reservation_service_pb2
from history_svc import servicer as history
from reservation_svc import servicer as reservation
from restaurant_svc import servicer as restaurant
from tests.edge.conftest import put_in_place
from tests.edge.rpcs import RPCS
from tests.edge.stand_in import StandIn
from tests.mesh.people import Doors, bearer, until
from tests.support.edge import RunningEdge
from tests.support.json_refusals import json_refusal
from tests.support.mesh import Keys, RunningMesh
from tests.support.refusals import refused

LIST = RPCS["ListReservations"].path
OPEN = RPCS["ListRestaurants"].path
NO_REQUEST = b""


def signed(keys: Keys, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    """A good token of alice but for `change`, which gets its claims and its header."""
    now = int(time.time())
    claims: dict[str, Any] = {"iss": "dinemesh", "aud": "dinemesh", "sub": "alice", "role": "customer"}
    claims |= {"iat": now, "exp": now + 600}
    header: dict[str, Any] = {"kid": keys.kid}
    change(claims, header)
    return jwt.encode(claims, keys.private, algorithm="ES256", headers=header)


def _with_claims(**changed: object) -> Callable[[Keys], str]:
    """A claim that is None is left out."""

    def change(claims: dict[str, Any], _header: dict[str, Any]) -> None:
        claims.update(changed)
        for name in [name for name, value in changed.items() if value is None]:
            del claims[name]

    return lambda keys: signed(keys, change)


def _base64(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _alg_none(keys: Keys) -> str:
    _, claims, _ = signed(keys, lambda *_: None).split(".")
    return f"{_base64({'alg': 'none', 'kid': keys.kid})}.{claims}."


def _hmac_with_the_public_key(keys: Keys) -> str:
    public = keys.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = {"iss": "dinemesh", "aud": "dinemesh", "sub": "alice", "role": "customer", "exp": 2**31}
    head = f"{_base64({'alg': 'HS256', 'kid': keys.kid})}.{_base64(claims)}"
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(head.encode(), public)
    return f"{head}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _with_another_key(keys: Keys) -> str:
    claims = {"iss": "dinemesh", "aud": "dinemesh", "sub": "alice", "role": "customer", "exp": 2**31}
    other = ec.generate_private_key(ec.SECP256R1())
    return jwt.encode(claims, other, algorithm="ES256", headers={"kid": keys.kid})


def _with_a_longer_name(keys: Keys) -> str:
    head, claims, signature = signed(keys, lambda *_: None).split(".")
    changed = json.loads(base64.urlsafe_b64decode(claims + "=="))
    return f"{head}.{_base64(changed | {'sub': 'bob'})}.{signature}"


def _of_an_unknown_key(keys: Keys) -> str:
    return signed(keys, lambda _claims, header: header.update(kid="nobody"))


BROKEN: dict[str, tuple[Callable[[Keys], str], str]] = {
    "junk": (lambda _keys: "junk", "TOKEN_INVALID"),
    "three parts of junk": (lambda _keys: "a.b.c", "TOKEN_INVALID"),
    "alg none": (_alg_none, "TOKEN_INVALID"),
    "HMAC with the public key": (_hmac_with_the_public_key, "TOKEN_INVALID"),
    "signed by somebody else": (_with_another_key, "TOKEN_INVALID"),
    "of an unknown key": (_of_an_unknown_key, "TOKEN_INVALID"),
    "changed afterwards": (_with_a_longer_name, "TOKEN_INVALID"),
    "of another issuer": (_with_claims(iss="somebody"), "TOKEN_INVALID"),
    "of no issuer": (_with_claims(iss=None), "TOKEN_INVALID"),
    "for another audience": (_with_claims(aud="somebody"), "TOKEN_INVALID"),
    "for no audience": (_with_claims(aud=None), "TOKEN_INVALID"),
    "not valid yet": (_with_claims(nbf=2**31 - 1), "TOKEN_INVALID"),
    "without an end": (_with_claims(exp=None), "TOKEN_INVALID"),
    "expired": (_with_claims(exp=int(time.time()) - 20), "TOKEN_EXPIRED"),
}


@pytest.mark.parametrize("path", ["/v1/reservations", "/v1/restaurants"], ids=["needs one", "open"])
@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_token_is_refused_in_json(
    alone: httpx.AsyncClient, stand_in: StandIn, kind: str, path: str
) -> None:
    make, reason = BROKEN[kind]
    answer = await alone.get(path, headers={"authorization": f"Bearer {make(stand_in.keys)}"})
    said = json_refusal(answer)
    assert (said.status, said.reason) == (401, reason)
    assert stand_in.seen == []


@pytest.mark.parametrize("method", [LIST, OPEN], ids=["needs one", "open"])
@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_token_is_refused_in_grpc(
    channel_alone: grpc.aio.Channel, stand_in: StandIn, kind: str, method: str
) -> None:
    make, reason = BROKEN[kind]
    stand_in.seen.clear()
    call: Any = channel_alone.unary_unary(method)
    said = await refused(call(NO_REQUEST, metadata=bearer(make(stand_in.keys)), timeout=10))
    assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert stand_in.seen == []


@pytest.mark.parametrize("value", ["", "Bearer", "Basic YWxpY2U6c2VjcmV0", "{token}", "Token {token}"])
async def test_what_is_no_bearer_token_is_none(
    alone: httpx.AsyncClient, stand_in: StandIn, value: str
) -> None:
    """On an open path it goes on to the service, which refuses it (test_identity.py of the kit)."""
    sent = value.replace("{token}", stand_in.keys.token("alice", "customer"))
    answer = await alone.get("/v1/reservations", headers={"authorization": sent})
    assert json_refusal(answer).reason in ("TOKEN_MISSING", "TOKEN_INVALID")
    assert stand_in.seen == []


async def test_two_tokens_are_none(alone: httpx.AsyncClient, stand_in: StandIn) -> None:
    good = f"Bearer {stand_in.keys.token('alice', 'customer')}"
    for headers in ([good, "Bearer junk"], ["Bearer junk", good]):
        answer = await alone.get("/v1/reservations", headers=[("authorization", one) for one in headers])
        assert answer.status_code == 401, answer.text
    assert stand_in.seen == []


@pytest.mark.parametrize("role", ["service", "admin", "", None, ["customer"], "Customer"])
async def test_only_people_get_through(alone: httpx.AsyncClient, stand_in: StandIn, role: Any) -> None:
    token = _with_claims(role=role)(stand_in.keys)
    for path in ("/v1/reservations", "/v1/restaurants"):
        answer = await alone.get(path, headers={"authorization": f"Bearer {token}"})
        said = json_refusal(answer)
        assert (said.status, said.reason) == (403, "PERMISSION_DENIED")
    assert stand_in.seen == []


SCHEMES = ("bearer", "BEARER", "bEaReR", "bearer ", "Basic x,bearer")
"""RFC 9110: the case of a scheme does not count. The services take all but the last."""


@pytest.mark.parametrize("scheme", SCHEMES[:-1])
async def test_the_scheme_may_be_written_in_any_case(
    alone: httpx.AsyncClient, channel_alone: grpc.aio.Channel, stand_in: StandIn, scheme: str
) -> None:
    """As the services have it, over JSON and over gRPC."""
    sent = f"{scheme} {stand_in.keys.token('alice', 'customer')}"
    for path in ("/v1/reservations", "/v1/restaurants"):
        assert (await alone.get(path, headers={"authorization": sent})).status_code == 200
    call: Any = channel_alone.unary_unary(LIST)
    assert await call(NO_REQUEST, metadata=(("authorization", sent),), timeout=10) == b""
    for one in stand_in.seen:
        assert one.metadata["authorization"] == sent.replace(scheme.strip(), "Bearer")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_no_scheme_hides_who_may_not_come_through(
    alone: httpx.AsyncClient, channel_alone: grpc.aio.Channel, stand_in: StandIn, scheme: str
) -> None:
    """Not even where no token is needed: passed over as none, it would reach a service that takes it."""
    sent = f"{scheme} {stand_in.keys.token('reservation', 'service')}"
    for path in ("/v1/reservations", "/v1/restaurants"):
        said = json_refusal(await alone.get(path, headers={"authorization": sent}))
        assert (said.status, said.reason) == (403, "PERMISSION_DENIED")
    call: Any = channel_alone.unary_unary(OPEN)
    told = await refused(call(NO_REQUEST, metadata=(("authorization", sent),), timeout=10))
    assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert stand_in.seen == []


async def test_a_second_header_hides_nobody_either(alone: httpx.AsyncClient, stand_in: StandIn) -> None:
    sent = ["Basic x", f"bearer {stand_in.keys.token('reservation', 'service')}"]
    for values in (sent, sent[::-1]):
        answer = await alone.get("/v1/restaurants", headers=[("authorization", one) for one in values])
        assert answer.status_code in (401, 403), answer.text
    assert stand_in.seen == []


@pytest.mark.parametrize("path", ["/v1/reservations", "/v1/restaurants"], ids=["needs one", "open"])
async def test_a_broken_token_is_refused_whatever_the_case_of_its_scheme(
    alone: httpx.AsyncClient, stand_in: StandIn, path: str
) -> None:
    said = json_refusal(await alone.get(path, headers={"authorization": "bearer a.b.c"}))
    assert (said.status, said.reason) == (401, "TOKEN_INVALID")
    assert stand_in.seen == []


@pytest.mark.parametrize("role", ["customer", "staff", "operator"])
async def test_the_service_gets_the_token_to_check_it_again(
    alone: httpx.AsyncClient, stand_in: StandIn, role: str
) -> None:
    sent = f"Bearer {stand_in.keys.token('alice', role, 'somewhere')}"
    assert (await alone.get("/v1/reservations", headers={"authorization": sent})).status_code == 200
    assert stand_in.seen[-1].metadata["authorization"] == sent


async def test_what_only_a_proxy_may_say_does_not_come_from_a_client(
    alone: httpx.AsyncClient, stand_in: StandIn
) -> None:
    forged = {
        "x-envoy-original-path": "/forged",
        "x-envoy-internal": "true",
        "x-envoy-external-address": "203.0.113.7",
        "x-envoy-retry-on": "5xx",
        "x-envoy-max-retries": "9",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-expected-rq-timeout-ms": "1",
        "x-envoy-attempt-count": "9",
        "x-envoy-peer-metadata": "forged",
        "X-Envoy-Decorator-Operation": "forged",
        "x-forwarded-client-cert": "By=spiffe://forged",
        "x-request-id": "forged",
    }
    token = stand_in.keys.token("alice", "customer")
    answer = await alone.get("/v1/reservations", headers=forged | {"authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    arrived = stand_in.seen[-1].metadata
    for name, value in forged.items():
        assert arrived.get(name.lower()) != value, name
    assert "x-forwarded-client-cert" not in arrived
    assert arrived["x-envoy-original-path"] == "/v1/reservations"


def test_the_edge_asks_for_a_token_where_the_services_do(edge_alone: RunningEdge) -> None:
    (listener,) = [one for one in edge_alone.parsed["static_resources"]["listeners"] if one["name"] == "edge"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (tokens,) = [one for one in manager["http_filters"] if one["name"].endswith("jwt_authn")]
    rules = tokens["typed_config"]["rules"]
    assert rules[-1] == {"match": {"prefix": "/"}, "requirement_name": "token"}
    opened = {rule["match"].get("path") for rule in rules[:-1] if "path" in rule["match"]}
    assert {rule["requirement_name"] for rule in rules[:-1]} == {"token if any"}
    access = reservation.ACCESS | dict(deposit.ACCESS) | dict(restaurant.ACCESS) | dict(history.ACCESS)
    assert opened == {method for method, who in access.items() if who is ANYONE}
    prefixes = {rule["match"]["prefix"].split(".")[0] for rule in rules[:-1] if "prefix" in rule["match"]}
    assert prefixes == {"/grpc"}


async def test_keys_are_rotated_without_a_restart(
    mesh: RunningMesh,
    edge: RunningEdge,
    http: httpx.AsyncClient,
    doors: Doors,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """With the real services: the edge and all of them take tokens of both keys, and then of one again."""
    before = mesh.keys.jwks_file.read_text()
    new = Keys(tmp_path_factory.mktemp("new-keys"))
    both = {"keys": json.loads(before)["keys"] + json.loads(new.jwks_file.read_text())["keys"]}
    of_old, of_new = mesh.token("alice", "customer"), new.token("alice", "customer")

    async def statuses(token: str) -> list[int]:
        headers = {"authorization": f"Bearer {token}"}
        paths = ("/v1/reservations", "/v1/deposits", "/v1/timeline", "/v1/restaurants")
        return [(await http.get(path, headers=headers)).status_code for path in paths]

    async def of_the_new_one() -> list[int]:
        return await statuses(of_new)

    pid = edge.pid
    assert await statuses(of_new) == [401] * 4
    try:
        put_in_place(mesh.keys.jwks_file, json.dumps(both))
        await until(of_the_new_one, lambda found: found == [200] * 4, 10)
        assert await statuses(of_old) == [200] * 4
        await doors.reservation.ListReservations(
            reservation_service_pb2.ListReservationsRequest(), metadata=bearer(of_new), timeout=5
        )
    finally:
        put_in_place(mesh.keys.jwks_file, before)
    await until(of_the_new_one, lambda found: found == [401] * 4, 10)
    assert await statuses(of_old) == [200] * 4
    assert edge.running and edge.pid == pid


async def test_an_edge_that_never_had_keys_lets_nobody_in_and_says_why(
    stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = Keys(tmp_path_factory.mktemp("own-keys"))
    good = own.jwks_file.read_text()
    put_in_place(own.jwks_file, '{"keys": [')
    behind = StandIn(own)
    edge = RunningEdge(behind, tmp_path_factory.mktemp("without-keys"))
    edge.start()
    try:
        async with httpx.AsyncClient(base_url=edge.url, timeout=10) as client:
            headers = {"authorization": f"Bearer {own.token('alice', 'customer')}"}

            async def ask() -> httpx.Response:
                return await client.get("/v1/reservations", headers=headers)

            said = json_refusal(await ask())
            assert (said.status, said.reason, said.retry_after) == (503, "UNAVAILABLE", 1)
            assert behind.seen == []
            put_in_place(own.jwks_file, good)
            await until(ask, lambda answer: answer.status_code == 200, 10)
    finally:
        edge.stop()
        behind.stop()
