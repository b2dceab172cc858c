"""RabbitMQ without root: the distribution's package, unpacked into the project folder, on ports of our own.

Two processes: epmd (Erlang's name server, on a port of its own, so that it is never shared with the
machine's) and the broker. Both listen on 127.0.0.1 only. `commands` says how each is started; the supervisor
and the tests run them.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from local_mesh import broker_users
from local_mesh.debian import Unpacked, unpack
from local_mesh.failure import Failure

NODE = "dinemesh@localhost"
START_SECONDS = 120
"""Some 5 s on a good machine; a busy one with two cores has needed 40."""
STOP_SECONDS = 30
LOG_FILE = "rabbitmq.json"
"""Below `home`/log."""

NOT_NEEDED = frozenset(
    {"adduser", "init-system-helpers", "logrotate", "lsb-base", "openssl", "python3", "systemd"}
)
"""What only an installed package needs: a user, rotated logs, a service file."""

ADVICE = (
    "Name a broker that runs already, `make up AMQP_URL=amqp://guest:guest@127.0.0.1:5672/` "
    "(DINEMESH_AMQP_URL in the environment)."
)


@dataclass(frozen=True)
class BrokerPorts:
    """All on 127.0.0.1."""

    amqp: int
    dist: int
    """Erlang's distribution, for the command line tools."""
    epmd: int


@dataclass(frozen=True)
class Command:
    """How to start one process: `arguments` begins with its path, `environment` is all that it needs."""

    arguments: tuple[str, ...]
    environment: dict[str, str]


def unpack_broker(cache: Path, say: Callable[[str], None]) -> Unpacked:
    """The broker's files in `cache`/rabbitmq; takes half a minute the first time."""
    if any(character.isspace() for character in str(cache)):
        raise Failure(
            f"RabbitMQ's start script cannot run below a folder with a space in its name: {cache}. {ADVICE}"
        )
    try:
        return unpack(
            cache / "rabbitmq",
            ["rabbitmq-server"],
            own=lambda package: package == "rabbitmq-server" or package.startswith("erlang-"),
            left_out=NOT_NEEDED,
            finish=_point_erlang_home,
            say=lambda text: say(f"RabbitMQ: {text}"),
        )
    except Failure as failure:
        raise Failure(f"{failure}\n{ADVICE}") from failure


def _point_erlang_home(unpacked: Path, root: Path) -> None:
    """Erlang's start scripts name its home: try it where it stands now, then name where it will stand."""
    scripts = [*unpacked.glob("usr/lib/erlang/bin/erl"), *unpacked.glob("usr/lib/erlang/erts-*/bin/erl")]
    if not scripts:
        raise Failure("The package erlang-base holds no usr/lib/erlang/bin/erl.")

    def point(old: str, new: Path) -> None:
        for script in scripts:
            script.write_text(script.read_text().replace(f"ROOTDIR={old}", f"ROOTDIR={new}/usr/lib/erlang"))

    point("/usr/lib/erlang", unpacked)
    tried = subprocess.run(
        [str(scripts[0]), "-noinput", "-eval", "ok = crypto:start(), halt(0)."],
        env=_erlang_environment(Unpacked(unpacked), Path("/nonexistent")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if tried.returncode != 0:
        raise Failure(f"Erlang does not start on this machine:\n{(tried.stdout + tried.stderr).strip()}")
    point(f"{unpacked}/usr/lib/erlang", root)


def _erlang_environment(files: Unpacked, home: Path) -> dict[str, str]:
    erlang = files.root / "usr/lib/erlang"
    epmd_folders = ":".join(str(folder) for folder in erlang.glob("erts-*/bin"))
    environment = {
        "PATH": f"{erlang}/bin:{epmd_folders}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
    }
    if files.library_path:
        environment["LD_LIBRARY_PATH"] = files.library_path
    return environment


def commands(
    files: Unpacked, home: Path, ports: BrokerPorts, node: str = NODE, configuration: str = ""
) -> dict[str, Command]:
    """How to start `epmd` and `rabbitmq`, in this order. `home` holds data, cookie and configuration.

    `node` is the broker's name in Erlang; `configuration` is what its rabbitmq.conf says besides.
    """
    (home / "log").mkdir(parents=True, exist_ok=True)
    config = home / "rabbitmq.conf"
    config.write_text(
        "# Written anew at every start.\n"
        f"listeners.tcp.1 = 127.0.0.1:{ports.amqp}\n"
        # One machine that also does other things: refuse to publish only when it is really short.
        "vm_memory_high_watermark.absolute = 1GB\n"
        "disk_free_limit.absolute = 100MB\n"
        # The default of 512 MB for the write-ahead log of quorum queues is memory too.
        "raft.wal_max_size_bytes = 16777216\n"
        "log.console = false\n"
        f"log.dir = {home}/log\n"
        f"log.file = {LOG_FILE}\n"
        "log.file.level = info\n"
        "log.file.formatter = json\n" + configuration
    )
    (home / "enabled_plugins").write_text("[].\n")
    server = next(files.root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"), None)
    epmd = next(files.root.glob("usr/lib/erlang/erts-*/bin/epmd"), None)
    if server is None or epmd is None:
        raise Failure(f"{files.root} is not a whole RabbitMQ. Remove that folder and try again.")
    shared = _erlang_environment(files, home) | {
        "ERL_EPMD_PORT": str(ports.epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        # Erlang would start a daemon of its own that outlives the broker.
        "ERL_ZFLAGS": "-start_epmd false",
        "ERL_CRASH_DUMP_SECONDS": "0",
    }
    broker = shared | {
        "RABBITMQ_HOME": str(server),
        "RABBITMQ_NODENAME": node,
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(ports.amqp),
        "RABBITMQ_DIST_PORT": str(ports.dist),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_PID_FILE": str(home / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
        "RABBITMQ_SCHEMA_DIR": str(home / "schema"),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_CONF_ENV_FILE": str(home / "no-such-file"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "no-such-file.config"),
        # The start script then becomes the broker (exec) instead of standing between it and the supervisor.
        "RABBITMQ_ALLOW_INPUT": "true",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
    }
    return {
        "epmd": Command((str(epmd), "-port", str(ports.epmd), "-address", "127.0.0.1"), shared),
        "rabbitmq": Command((str(server / "sbin/rabbitmq-server"),), broker),
    }


def answers(port: int, timeout_seconds: float = 1.0, host: str = "127.0.0.1") -> bool:
    """Whether a broker on `port` opens an AMQP connection: it does so only after it has started fully."""
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds) as connection:
            connection.settimeout(timeout_seconds)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def as_user(url: str, user: str) -> str:
    """A URL of `RunningBroker.fresh_url` for one of the mesh's users."""
    return url.replace("://guest:guest@", f"://{user}:{user}@")


CALL_ATTEMPTS, CALL_PAUSE_SECONDS = 3, 0.3


def evaluate(files: Unpacked, home: Path, ports: BrokerPorts, expression: str) -> str:
    """Run one Erlang expression in the broker, in milliseconds where rabbitmqctl takes seconds. Raises
    Failure."""
    call = files.root / "usr/lib/erlang/bin/erl_call"
    cookie = (home / ".erlang.cookie").read_text()
    for attempt in range(1, CALL_ATTEMPTS + 1):
        done = subprocess.run(
            [str(call), "-address", f"127.0.0.1:{ports.dist}", "-c", cookie, "-e"],
            input=f"{expression}.\n",
            env=_erlang_environment(files, home) | {"ERL_EPMD_PORT": str(ports.epmd)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if attempt == CALL_ATTEMPTS or "failed to connect" not in done.stdout + done.stderr:
            break
        time.sleep(CALL_PAUSE_SECONDS)  # nothing was run; a busy node does not greet in time
    if done.returncode != 0 or not done.stdout.startswith("{ok,"):
        raise Failure(f"RabbitMQ refused {expression}: {(done.stdout + done.stderr).strip()}")
    return done.stdout.strip().removeprefix("{ok, ").removesuffix("}")


def alarms(files: Unpacked, home: Path, ports: BrokerPorts) -> list[str]:
    """What the broker is short of, "memory" or "disk": with an alarm it takes no messages. Raises Failure."""
    said = evaluate(
        files, home, ports, "[What || {{resource_limit, What, _}, _} <- rabbit_alarm:get_alarms()]"
    )
    return [what for what in said.strip("[]").split(",") if what]


def _erlang(text: str) -> str:
    """As a string of Erlang."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class RunningBroker:
    """A broker of one's own, child of this process and gone with it.

    `node` and `configuration`: as `commands` takes them. Without `own_epmd` another's runs on that port.
    """

    def __init__(
        self,
        files: Unpacked,
        home: Path,
        ports: BrokerPorts,
        *,
        node: str = NODE,
        configuration: str = "",
        own_epmd: bool = True,
    ) -> None:
        self._files = files
        self.home = home
        self.ports = ports
        self.node = node
        self.url = f"amqp://guest:guest@127.0.0.1:{ports.amqp}/"
        self._commands = commands(files, home, ports, node, configuration)
        self._parts = ("epmd", "rabbitmq") if own_epmd else ("rabbitmq",)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def pid(self) -> int:
        """Of the broker itself."""
        return self._processes["rabbitmq"].pid

    @property
    def is_running(self) -> bool:
        """Whether the broker's process is there; it may hang, or start only now."""
        return "rabbitmq" in self._processes and self._processes["rabbitmq"].poll() is None

    @property
    def log(self) -> Path:
        """What the broker printed; its log proper is in `home`/log."""
        return self.home / "rabbitmq.log"

    def start(self, wait_seconds: float = START_SECONDS) -> None:
        """Start what does not run and wait until the broker answers."""
        self.spawn()
        self.wait_until_ready(wait_seconds)

    def spawn(self) -> None:
        """Start what does not run. It dies with the thread that does this."""
        for name in self._parts:
            if name not in self._processes or self._processes[name].poll() is not None:
                self._processes[name] = self._spawn(name)

    def wait_until_ready(self, wait_seconds: float = START_SECONDS) -> None:
        """Wait until the broker answers."""
        end = time.monotonic() + wait_seconds
        while not answers(self.ports.amqp):
            if self._processes["rabbitmq"].poll() is not None or time.monotonic() > end:
                code = self._processes["rabbitmq"].poll()
                self.stop()
                said = self.log.read_text(errors="replace")[-4000:]
                raise Failure(f"RabbitMQ did not start (exit code {code}). The end of {self.log}:\n{said}")
            time.sleep(0.05)

    def fresh_url(self) -> str:
        """The URL of a new, empty virtual host: exchanges and queues that nobody else sees. Of a user who
        may do everything there; `as_user` gives that of one of the mesh's."""
        name = f"v{uuid.uuid4().hex}"
        known = broker_users.definitions({user: user for user in broker_users.USERS}, name)
        self.evaluate(
            f"rabbit_definitions:import_raw(<<{_erlang(json.dumps(known))}>>), "
            f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>, '
            '<<".*">>, <<".*">>, <<".*">>, <<"local_mesh">>)'
        )
        return f"{self.url}{name}"

    def evaluate(self, expression: str) -> str:
        """As the function of this name."""
        return evaluate(self._files, self.home, self.ports, expression)

    def write_queue_directory(self) -> None:
        """Have RabbitMQ write down which quorum queues it has.

        It does so by itself within two seconds of a declaration. A quorum queue that it has not written down
        when it is killed never works again; a test that kills right after a declaration calls this first.
        """
        self.evaluate("lists:foreach(fun dets:sync/1, dets:all())")

    def stop(self) -> None:
        """Stop the broker in order, then its epmd."""
        self._end("rabbitmq", signal.SIGTERM)
        self._end("epmd", signal.SIGTERM)

    def stop_broker_only(self) -> None:
        """Stop the broker in order; `start` brings it back with its data."""
        self._end("rabbitmq", signal.SIGTERM)

    def kill(self) -> None:
        """kill -9 the broker; `start` brings it back with its data."""
        self._end("rabbitmq", signal.SIGKILL)

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        command = self._commands[name]
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                # The kernel ends it when we are gone, however we went.
                ["setpriv", "--pdeathsig", "KILL", "--", *command.arguments],
                env=command.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_broker(
    home: Path, amqp_port: int, dist_port: int, epmd_port: int, cache: Path | None = None
) -> RunningBroker:
    """A private broker: its data in `home`, its program files shared with the project's other brokers."""
    files = unpack_broker(cache or project_cache(), lambda text: print(text, file=sys.stderr, flush=True))
    broker = RunningBroker(files, home, BrokerPorts(amqp_port, dist_port, epmd_port))
    broker.start()
    return broker


def project_cache() -> Path:
    """Where the project keeps what it downloaded; removing it costs only time."""
    return Path(__file__).resolve().parent.parent / ".cache"
