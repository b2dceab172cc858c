"""Tokens: the services' own check accepts them, and nothing that a service would refuse is handed out."""

from __future__ import annotations

import stat
import uuid
from pathlib import Path

import pytest

from dinemesh.kit.call import Identity
from dinemesh.kit.identity import Verifier
from local_mesh import keys, tokens
from local_mesh.failure import Failure
from local_mesh.places import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "state")


def identity_of(places: Places, token: str) -> Identity:
    return Verifier(places.jwks).verify(token)


def test_a_customers_token_passes_the_check_of_the_services(places: Places) -> None:
    identity = identity_of(places, tokens.person(places, "alice", "customer"))
    assert (identity.subject, identity.role, identity.restaurant_id) == ("alice", "customer", None)


def test_a_staff_token_carries_the_restaurant(places: Places) -> None:
    restaurant_id = str(uuid.uuid4())
    for given in (restaurant_id, restaurant_id.upper()):
        identity = identity_of(places, tokens.person(places, "bob", "staff", given))
        assert (identity.role, identity.restaurant_id) == ("staff", restaurant_id)


def test_the_token_of_reservation_says_service(places: Places) -> None:
    places.make()
    tokens.write_for_services(places)
    identity = identity_of(places, places.service_token("reservation").read_text())
    assert (identity.subject, identity.role) == ("reservation", "service")


@pytest.mark.parametrize(
    ("subject", "role", "restaurant", "named"),
    [
        ("alice", "king", "", "ROLE must be one of"),
        ("alice", "service", "", "ROLE must be one of"),
        ("", "customer", "", "SUB must be"),
        ("a\nb", "customer", "", "SUB must be"),
        ("bob", "staff", "", "RESTAURANT=<restaurant id>"),
        ("bob", "staff", "Trattoria", "GET /v1/restaurants of the edge lists them"),
        ("alice", "customer", "r-1", "goes with ROLE=staff"),
    ],
)
def test_a_token_that_a_service_would_refuse_is_not_made(
    places: Places, subject: str, role: str, restaurant: str, named: str
) -> None:
    with pytest.raises(Failure, match=named):
        tokens.person(places, subject, role, restaurant)


def test_private_keys_and_service_tokens_are_for_our_user_only(places: Places) -> None:
    places.make()
    tokens.write_for_services(places)
    for file in [*places.keys.iterdir(), places.service_token("reservation")]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert "PRIVATE" not in places.jwks.read_text()
    assert '"d"' not in places.jwks.read_text()


def test_keys_stay_the_same_and_two_are_trusted(places: Places) -> None:
    places.make()
    keys.make_keys(places)
    before = places.jwks.read_text()
    keys.make_keys(places)
    assert places.jwks.read_text() == before
    assert before.count('"kid"') == 2


def test_a_lost_key_is_replaced_and_the_other_stays_trusted(places: Places) -> None:
    kept = tokens.person(places, "alice", "customer")
    (places.keys / f"{keys.KEY_IDS[1]}.pem").unlink()
    keys.make_keys(places)
    assert identity_of(places, kept).subject == "alice"
