"""What the Envoy between reservation and deposit is told, which stands there where there is no Istio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from local_mesh.envoy import configuration

POLICY = configuration.ROOT / "envoy" / "policy.yaml"
"""The outermost file of the proxy."""


@dataclass(frozen=True, kw_only=True)
class PolicyValues:
    """What the proxy has to be told, and what it may be told. Each is a `!value` of the same name.

    The defaults are those of istio/reservation-to-deposit.yaml.
    """

    port: int
    """Where reservation calls it."""
    admin_port: int
    """Where Envoy's own pages are; on 127.0.0.1 whatever `host` is, since they can stop it."""
    deposit: Sequence[str]
    """Addresses (host:port) of the instances of deposit. A name stands for all addresses that it has."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    calls_limit: int = 128
    """Calls to deposit at once; one more is refused at once, and nothing is charged."""
    charge_timeout_seconds: float = 3
    """For a charge; below reservation's own deadline for it (DINEMESH_DEPOSIT_DEADLINE_MS)."""
    ejection_seconds: float = 15
    """How long an instance is left alone after five errors in a row; times the number of ejections."""

    def as_mapping(self) -> dict[str, object]:
        """By the names that the files use."""
        return asdict(self) | {
            "charge_timeout_seconds": f"{self.charge_timeout_seconds}s",
            "ejection_seconds": f"{self.ejection_seconds}s",
            "deposit": [configuration.endpoint(address) for address in self.deposit],
            "discovery": configuration.discovery(self.deposit),
        }


def write(values: PolicyValues, file: Path) -> Path:
    """Writes the proxy's configuration into `file`, and returns it."""
    file.write_text(render(values))
    return file


def render(values: PolicyValues) -> str:
    """The whole configuration as YAML."""
    return configuration.render(POLICY, values.as_mapping())
