"""Keys are read again when their file changes; a verified token is remembered no longer than it is good."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jwt
import pytest

from dinemesh.kit import identity
from dinemesh.kit.identity import Verifier
from dinemesh.kit.refusal import Refusal
from tests.support.mesh import Keys


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_LOOK_SECONDS", 0.0)


def refused(verifier: Verifier, token: str) -> str:
    with pytest.raises(Refusal) as refusal:
        verifier.verify(token)
    return refusal.value.reason


def test_a_token_names_its_bearer(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    verifier = Verifier(keys.jwks_file)
    staff = verifier.verify(keys.token("bob", "staff", "r1"))
    assert (staff.subject, staff.role, staff.restaurant_id) == ("bob", "staff", "r1")
    customer = verifier.verify(keys.token("alice", "customer", "r1"))
    assert customer.restaurant_id is None
    assert customer.expires_at is not None


@pytest.mark.parametrize(
    "role", [None, "", "cook", 1, ["customer"], ["service", "customer"], {"customer": True}]
)
def test_a_role_that_is_none_of_ours_is_refused_whatever_it_is(tmp_path: Path, role: object) -> None:
    keys = Keys(tmp_path)
    claims = {
        "iss": "dinemesh",
        "aud": "dinemesh",
        "sub": "alice",
        "role": role,
        "exp": int(time.time()) + 60,
    }
    token = jwt.encode(claims, keys.private, algorithm="ES256", headers={"kid": keys.kid})
    assert refused(Verifier(keys.jwks_file), token) == "TOKEN_INVALID"


@pytest.mark.parametrize("subject", ["", " ", "\u3164", "\u2800", "\u200b", "a\n", "x" * 129])
def test_a_subject_that_nobody_can_see_or_write_down_is_refused(tmp_path: Path, subject: str) -> None:
    keys = Keys(tmp_path)
    assert refused(Verifier(keys.jwks_file), keys.token(subject, "customer")) == "TOKEN_INVALID"


def test_a_new_key_is_trusted_and_an_old_one_no_longer(tmp_path: Path) -> None:
    old = Keys(tmp_path)
    verifier = Verifier(old.jwks_file)
    token = old.token("alice", "customer")
    verifier.verify(token)
    new = Keys(tmp_path)
    verifier.verify(new.token("alice", "customer"))
    assert refused(verifier, token) == "TOKEN_INVALID", "although it was verified before"


@pytest.mark.parametrize(
    "spoiled", ["", "{", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AA", "kid": "x"}]}']
)
def test_a_spoiled_key_file_stops_a_start_and_does_not_stop_a_running_service(
    tmp_path: Path, spoiled: str
) -> None:
    keys = Keys(tmp_path)
    verifier = Verifier(keys.jwks_file)
    keys.jwks_file.write_text(spoiled)
    verifier.verify(keys.token("alice", "customer"))
    keys.jwks_file.unlink()
    verifier.verify(keys.token("bob", "customer"))
    keys.jwks_file.write_text(spoiled)
    with pytest.raises(ValueError, match=r".+"):
        Verifier(keys.jwks_file)


def test_a_token_is_remembered_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(tmp_path)
    verifier = Verifier(keys.jwks_file)
    token = keys.token("alice", "customer", seconds=30)
    first = verifier.verify(token)
    assert verifier.verify(token) is first
    later = time.time() + 31
    monkeypatch.setattr(time, "time", lambda: later)
    assert verifier.verify(token) is not first, "checked again, by the library's own clock"


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_CACHED_TOKENS", 3)
    keys = Keys(tmp_path)
    verifier = Verifier(keys.jwks_file)
    for number in range(10):
        verifier.verify(keys.token(f"customer-{number}", "customer"))
    assert len(verifier._verified) == 3


def test_a_key_without_an_id_is_refused_at_the_start(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    listed = json.loads(keys.jwks_file.read_text())
    del listed["keys"][0]["kid"]
    keys.jwks_file.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="key ids"):
        Verifier(keys.jwks_file)
