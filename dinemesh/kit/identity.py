"""Who asks: bearer tokens (JWT, ES256) checked against a file of public keys (JWKS)."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from pathlib import Path

import jwt

from dinemesh.kit import wire
from dinemesh.kit.call import CUSTOMER, OPERATOR, SERVICE, STAFF, Identity
from dinemesh.kit.refusal import Refusal

log = logging.getLogger(__name__)

ISSUER = "dinemesh"
AUDIENCE = "dinemesh"
# The only algorithm: a token must not choose how it is checked (`alg: none`, or HMAC with the public key).
ALGORITHM = "ES256"
ROLES = frozenset({CUSTOMER, STAFF, OPERATOR, SERVICE})

_MAX_TOKEN = 4096
_MAX_SUBJECT = 128
_CACHED_TOKENS = 4096  # a check costs about 0.1 ms of CPU, a cached one nothing
_LOOK_SECONDS = 1.0  # how soon a changed key file is noticed


class Verifier:
    """Turns tokens into identities. Keeps verified ones until they expire or the keys change.

    The file must be readable at the start. When it later becomes unreadable, the last keys stay in force.
    """

    def __init__(self, jwks_file: Path) -> None:
        """Raises OSError or ValueError if the file does not hold public keys."""
        self._file = jwks_file
        self._seen: tuple[int, int, int] | None = None
        self._looked = 0.0
        self._keys: dict[str, jwt.PyJWK] = {}
        self._verified: OrderedDict[str, Identity] = OrderedDict()
        self._read()

    def verify(self, token: str) -> Identity:
        """The identity that a token proves. Refuses with TOKEN_INVALID or TOKEN_EXPIRED."""
        self._read_if_changed()
        known = self._verified.get(token)
        if known is not None:
            if known.expires_at is not None and known.expires_at > time.time():
                return known
            del self._verified[token]
        identity = self._check(token)
        self._verified[token] = identity
        if len(self._verified) > _CACHED_TOKENS:
            self._verified.popitem(last=False)
        return identity

    def _check(self, token: str) -> Identity:
        if len(token) > _MAX_TOKEN:
            raise _invalid("is too long")
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != ALGORITHM:
                raise _invalid("is not signed with ES256")
            key = self._keys.get(str(header.get("kid", "")))
            if key is None:
                raise _invalid("is signed by an unknown key")
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                # iat is not a rule about validity; checking it would refuse tokens of a clock 1 s ahead.
                options={"require": ["exp", "iss", "aud", "sub"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise Refusal("TOKEN_EXPIRED", "the token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise _invalid("is not valid here") from None
        subject, role, restaurant = claims["sub"], claims.get("role"), claims.get("restaurant_id")
        if not isinstance(subject, str) or not _is_usable(subject):
            raise _invalid("has no usable sub")
        if not isinstance(role, str) or role not in ROLES:
            raise _invalid("has no known role")
        if role == STAFF and not (isinstance(restaurant, str) and restaurant):
            raise _invalid("is for staff and names no restaurant_id")
        return Identity(
            subject=subject,
            role=role,
            restaurant_id=restaurant if role == STAFF else None,
            expires_at=float(claims["exp"]),
        )

    def _read_if_changed(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            if self._stamp() != self._seen:
                self._read()
        except (OSError, ValueError) as error:
            log.warning("the key file cannot be read, the keys read before stay in force: %s", error)

    def _read(self) -> None:
        stamp = self._stamp()
        try:
            listed = json.loads(self._file.read_text())["keys"]
            keys = {str(one["kid"]): jwt.PyJWK(one, algorithm=ALGORITHM) for one in listed}
        except (KeyError, TypeError, jwt.PyJWTError) as error:
            raise ValueError(f"{self._file} is not a set of ES256 keys with key ids: {error!r}") from None
        if not keys:
            raise ValueError(f"{self._file} holds no key")
        self._keys = keys
        self._seen = stamp
        self._verified.clear()  # a key that was taken out takes its tokens with it

    def _stamp(self) -> tuple[int, int, int]:
        found = self._file.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size


def _is_usable(subject: str) -> bool:
    return len(subject) <= _MAX_SUBJECT and subject.isprintable() and not wire.is_blank(subject)


def _invalid(what: str) -> Refusal:
    return Refusal("TOKEN_INVALID", f"the token {what}")
