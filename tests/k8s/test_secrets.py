"""What `python -m local_mesh.cluster` makes: every Secret that the files refer to, and no password twice."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jwt
import pytest
from sqlalchemy.engine import make_url

from dinemesh.kit.identity import Verifier
from local_mesh import cluster
from tests.k8s import rendered, rules, schemas
from tests.k8s.rendered import OVERLAYS, ROOT, SERVICES, Cluster

DEV_KEYS, PROD_KEYS = (f"k8s/overlays/{overlay}/keys/jwks.json" for overlay in ("dev", "prod"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[rendered.Object]]:
    """A copy of the project, as it writes into an overlay of it; what it printed."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("local_mesh", "dinemesh", "k8s"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    printed = run(root)
    assert printed.returncode == 0, printed.stderr
    return root, rendered.parsed(printed.stdout)


def run(root: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local_mesh.cluster", *names],
        cwd=root,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_secret_that_the_overlays_refer_to_is_made(made: tuple[Path, list[rendered.Object]]) -> None:
    _, secrets = made
    found = {one["metadata"]["name"]: set(one["stringData"]) for one in secrets}
    assert found == {name: set(keys) for name, keys in cluster.SECRETS.items()}
    referred = {
        name
        for overlay in OVERLAYS
        for workload in Cluster(rendered.objects(overlay)).workloads
        for container in workload.containers
        for name in [*rules.secrets(container), *rules.mounted_secrets(workload)]
    }
    assert referred == set(found) - {"operator-endpoints"}  # for the operator's commands
    for one in secrets:
        assert list(schemas.complaints(one)) == []
        assert one["metadata"]["namespace"] == "dinemesh"


def test_both_ends_have_the_same_password_and_everybody_another(
    made: tuple[Path, list[rendered.Object]],
) -> None:
    _, secrets = made
    held = {one["metadata"]["name"]: one["stringData"] for one in secrets}
    definitions = json.loads(held["rabbitmq"]["definitions.json"])
    known = {one["name"]: one["password_hash"] for one in definitions["users"]}
    assert known.keys() == {*SERVICES, "operator"}
    words = set()
    for service in SERVICES:
        url = make_url(held[f"{service}-endpoints"]["DINEMESH_DATABASE_URL"])
        assert (url.host, url.database, url.username) == ("postgres", service, service)
        assert url.password == held["postgres"][f"{service.upper()}_PASSWORD"]
        words.add(url.password)
        broker = make_url(held[f"{service}-endpoints"]["DINEMESH_AMQP_URL"])
        assert (broker.host, broker.username) == ("rabbitmq", service)
        words.add(broker.password)
        assert proves(known[service], str(broker.password))
    operators = make_url(held["operator-endpoints"]["DINEMESH_AMQP_URL"])
    assert operators.username == "operator" and proves(known["operator"], str(operators.password))
    words |= {held["postgres"]["POSTGRES_PASSWORD"], operators.password}
    assert len(words) == 2 * len(SERVICES) + 2
    assert all(word is not None and len(word) >= 32 for word in words)
    again = cluster.values("token")
    assert again["postgres"] != held["postgres"]


def proves(stored: str, password: str) -> bool:
    """As RabbitMQ asks: four bytes of salt, then the hash of the salt and the password."""
    held = base64.b64decode(stored)
    return held[4:] == hashlib.sha256(held[:4] + password.encode()).digest()


def test_the_services_take_reservations_token_by_the_keys_that_go_with_it(
    made: tuple[Path, list[rendered.Object]],
) -> None:
    root, secrets = made
    keys = root / DEV_KEYS
    token = next(one for one in secrets if one["metadata"]["name"] == "reservation-token")["stringData"][
        "token"
    ]
    identity = Verifier(keys).verify(token)
    assert (identity.subject, identity.role) == ("reservation", "service")
    private = {"d", "p", "q"}
    assert all(not private & set(key) for key in json.loads(keys.read_text())["keys"])


def test_reservations_token_is_renewed_without_another_password(
    made: tuple[Path, list[rendered.Object]],
) -> None:
    root, _ = made
    keys = (root / DEV_KEYS).read_text()
    (renewed,) = rendered.parsed(run(root, "reservation-token").stdout)
    assert renewed["metadata"]["name"] == "reservation-token"
    assert Verifier(root / DEV_KEYS).verify(renewed["stringData"]["token"]).subject == "reservation"
    assert (root / DEV_KEYS).read_text() == keys
    unknown = run(root, "reservation-tokens")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no Secret reservation-tokens" in unknown.stderr


def test_the_keys_that_ship_let_nobody_in_and_prods_are_nobody_elses_to_write(
    made: tuple[Path, list[rendered.Object]],
) -> None:
    root, _ = made
    (shipped,) = json.loads((ROOT / PROD_KEYS).read_text())["keys"]
    assert shipped["kid"] == "nobody"
    jwt.PyJWK(shipped)  # a point of the curve: Envoy would refuse its whole listener otherwise
    Verifier(ROOT / PROD_KEYS)
    assert (root / PROD_KEYS).read_text() == (ROOT / PROD_KEYS).read_text()
    assert (root / DEV_KEYS).read_text() != (ROOT / PROD_KEYS).read_text()
