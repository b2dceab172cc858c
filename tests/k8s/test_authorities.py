"""The addresses that k8s/README.md asks for in prod, with real clients: the database and the broker have to
show a certificate of the authority that is mounted, and one of another is refused."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import aiormq
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.engine import make_url

from tests.k8s import rendered
from tests.k8s.rendered import K8S, Cluster

README = (K8S / "README.md").read_text()
MOUNTED = "/etc/dinemesh/authorities"
FILE = f"{MOUNTED}/ca.crt"
HOST = "localhost"
OTHER_NAME = "127.0.0.1"
"""Of the same machine; no certificate has it."""
SECONDS = 10

T = TypeVar("T")


class Authority:
    """Its own certificate, and one for a server on this machine."""

    def __init__(self, folder: Path, name: str) -> None:
        own, own_key = _certificate(name, None)
        server, server_key = _certificate(HOST, (own, own_key))
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(own.public_bytes(serialization.Encoding.PEM))
        chain = folder / f"{name}-server.pem"
        chain.write_bytes(
            server_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + server.public_bytes(serialization.Encoding.PEM)
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(chain)


def _certificate(
    name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return made.sign(issuer[1] if issuer else key, hashes.SHA256()), key


@contextlib.contextmanager
def server(behaves: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of one that takes a single connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(SECONDS)

        def run() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as client:
                client.settimeout(SECONDS)
                behaves(client)

        thread = threading.Thread(target=run)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "theirs")


def address(variable: str, port: int, authority: Authority, host: str = HOST) -> str:
    """As the README has it, for this server and this authority."""
    shown = re.findall(rf"`{variable}` \| `([^`]+)`", README)
    assert len(shown) == 1
    assert FILE in shown[0], "it names no authority"
    url = make_url(shown[0].replace(FILE, str(authority.file)))
    return url.set(host=host, port=port).render_as_string(hide_password=False)


@pytest.mark.parametrize("overlay", ["prod", "migrations"])
def test_the_authorities_are_mounted_where_the_addresses_say(overlay: str) -> None:
    for workload in Cluster(rendered.objects(overlay)).workloads:
        (container,) = workload.containers
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        (volume,) = (one for one in workload.pod["volumes"] if one["name"] == mounts[MOUNTED])
        assert volume["configMap"] == {"name": "dinemesh-authorities", "optional": True}
    assert "create configmap dinemesh-authorities --from-file=ca.crt" in README


def postgres(context: ssl.SSLContext) -> Callable[[socket.socket], object]:
    """Agrees to TLS, and says afterwards that it is starting up."""

    def behave(client: socket.socket) -> None:
        assert struct.unpack("!ii", client.recv(8)) == (8, 80877103)  # SSLRequest
        client.sendall(b"S")
        with context.wrap_socket(client, server_side=True) as secured:
            secured.recv(4096)
            fields = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"
            secured.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)

    return behave


def test_a_database_of_the_authority_is_spoken_to_and_another_is_not(
    ours: Authority, theirs: Authority
) -> None:
    def said(by: Authority, host: str = HOST) -> str:
        with server(postgres(by.server)) as port:
            url = make_url(address("DINEMESH_DATABASE_URL", port, ours, host)).set(drivername="postgresql")
            with pytest.raises(psycopg.OperationalError) as refused:
                psycopg.connect(url.render_as_string(hide_password=False), connect_timeout=SECONDS)
            return str(refused.value)

    assert "the database system is starting up" in said(ours)
    assert "certificate verify failed" in said(theirs)
    assert "does not match host name" in said(ours, OTHER_NAME)


def broker(context: ssl.SSLContext, heard: list[bytes]) -> Callable[[socket.socket], object]:
    def behave(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as secured:
            heard.append(secured.recv(8))

    return behave


def test_a_broker_of_the_authority_is_spoken_to_and_another_is_not(
    ours: Authority, theirs: Authority
) -> None:
    async def connect(url: str) -> None:
        async with asyncio.timeout(SECONDS):
            await aiormq.connect(url)

    def heard(by: Authority, host: str = HOST) -> tuple[list[bytes], Exception]:
        found: list[bytes] = []
        failed = pytest.raises((aiormq.AMQPError, OSError))
        with server(broker(by.server, found)) as port, failed as refused:
            asyncio.run(connect(address("DINEMESH_AMQP_URL", port, ours, host)))
        return found, refused.value

    assert heard(ours)[0] == [b"AMQP\x00\x00\x09\x01"]
    found, error = heard(theirs)
    assert found == [] and "certificate verify failed" in str(error)
    found, error = heard(ours, OTHER_NAME)
    assert found == [] and "mismatch" in str(error)
