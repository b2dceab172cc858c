"""Where a mesh keeps what: everything below one folder, which survives `make down`."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from local_mesh.failure import Failure


@dataclass(frozen=True)
class Places:
    """The files and folders of one mesh."""

    state: Path

    @property
    def data(self) -> Path:
        """SQLite files."""
        return self.state / "data"

    @property
    def logs(self) -> Path:
        """Returns the folder of what the parts print, and of supervisord's own log."""
        return self.state / "logs"

    @property
    def rabbitmq(self) -> Path:
        """Returns the folder with data, log and configuration of the mesh's own broker."""
        return self.state / "rabbitmq"

    @property
    def keys(self) -> Path:
        """Private keys, for our user only."""
        return self.state / "keys"

    @property
    def broker_passwords(self) -> Path:
        """Of the users of the mesh's own broker."""
        return self.keys / "rabbitmq.json"

    @property
    def broker_definitions(self) -> Path:
        """What the mesh's own broker is told of its users."""
        return self.rabbitmq / "definitions.json"

    @property
    def jwks(self) -> Path:
        """The public keys, which the services check tokens against."""
        return self.state / "jwks.json"

    def service_token(self, service: str) -> Path:
        """Returns the file of the token that a service shows to others; only reservation has one."""
        return self.state / "tokens" / service

    @property
    def edge(self) -> Path:
        """What the edge is started with."""
        return self.state / "edge"

    @property
    def edge_config(self) -> Path:
        """Returns Envoy's configuration for the edge, written when the mesh is started."""
        return self.edge / "envoy.yaml"

    @property
    def policy_config(self) -> Path:
        """What the proxy between reservation and deposit is started with."""
        return self.state / "policy.yaml"

    @property
    def supervisor_config(self) -> Path:
        """Returns a file for our user only: the environments in it hold passwords."""
        return self.state / "supervisord.conf"

    @property
    def supervisor_pid(self) -> Path:
        """Returns the file that supervisord writes; `make up` removes one that a killed supervisord left."""
        return self.state / "supervisord.pid"

    @property
    def running(self) -> Path:
        """The settings of the mesh that runs or ran last."""
        return self.state / "running.json"

    @property
    def logged_before(self) -> Path:
        """How long each log was when the mesh was started: what is said after a failed start begins there."""
        return self.logs / "lengths.json"

    @property
    def lock(self) -> Path:
        """Held while the mesh is brought up or down."""
        return self.state / "lock"

    @property
    def socket(self) -> Path:
        """The supervisor's. Not below `state`: a socket's path ends at 107 bytes, a checkout's may not."""
        key = hashlib.sha256(str(self.state).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"dinemesh-{os.getuid()}-{key}" / "supervisor.sock"

    def log(self, part: str) -> Path:
        """Returns the file to read for a part: rabbitmq's own in JSON, of others what they print."""
        return self.rabbitmq / "log" / "rabbitmq.json" if part == "rabbitmq" else self.logs / f"{part}.log"

    def make(self) -> None:
        """Make the folders, for our user only."""
        for folder in (
            self.state,
            self.data,
            self.logs,
            self.keys,
            self.edge,
            self.service_token("any").parent,
        ):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def make_socket_folder(self) -> None:
        """Make the one folder that stands outside; it goes again with the mesh."""
        folder = self.socket.parent
        folder.mkdir(exist_ok=True, mode=0o700)
        if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
            raise Failure(f"{folder} belongs to somebody else. Set TMPDIR to a folder of your own.")
        folder.chmod(0o700)
