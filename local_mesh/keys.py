"""The keys that tokens are signed with: two pairs, so that one can be replaced while the other signs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from local_mesh.places import Places

KEY_IDS = ("local-1", "local-2")
"""The first one signs; the services trust both."""


def make_keys(places: Places) -> None:
    """Make what is missing of the pairs, and the file of public keys."""
    public: list[dict[str, Any]] = []
    for key_id in KEY_IDS:
        file = places.keys / f"{key_id}.pem"
        if not file.exists():
            _write_privately(file, _pem(ec.generate_private_key(ec.SECP256R1())))
        key = ECAlgorithm.to_jwk(_read(file).public_key(), as_dict=True)
        public.append({**key, "kid": key_id, "alg": "ES256", "use": "sig"})
    text = json.dumps({"keys": public}, indent=2)
    if not places.jwks.exists() or places.jwks.read_text() != text:
        _replace(places.jwks, text.encode(), 0o644)


def sign(places: Places, claims: dict[str, Any]) -> str:
    """A token with these claims, signed by the first key."""
    key = _read(places.keys / f"{KEY_IDS[0]}.pem")
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": KEY_IDS[0]})


def _read(file: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{file} is not an elliptic curve key")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_privately(file: Path, content: bytes) -> None:
    _replace(file, content, 0o600)


def _replace(file: Path, content: bytes, mode: int) -> None:
    """The whole file or nothing, and never readable by others in between."""
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as output:
        output.write(content)
    partial.replace(file)


def write_service_token(file: Path, token: str) -> None:
    """What a service shows to another."""
    _write_privately(file, token.encode())
