"""From reservation through a proxy to instances of deposit.

There are two proxies with one policy: that of one machine (envoy/policy), and the Envoy of reservation's pod
as Istio configures it out of istio/. What one does, the other has to do.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc

from tests.istio.proxy import DEPOSIT, Proxy
from tests.policy.backends import CHARGE, Backend
from tests.support.policy import RunningPolicy

OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
FAILED = (UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Of an instance that hangs. Envoy gives it its own time as a deadline, and either may notice first."""

ERRORS_IN_A_ROW = 5
EJECTED_SECONDS = 15.0
ROUTE_SECONDS = 3.0
AT_ONCE = 128
DETECTED = "outlier_detection.ejections_detected_consecutive_gateway_failure"

ISTIO_LISTENER = "0.0.0.0_8082"
ISTIO_AUTHORITY = "deposit.dinemesh.svc.cluster.local:8082"


class Made:
    """The configuration of a proxy, to be changed before it starts."""

    def __init__(self, cluster: Any, routes: Any, filters: Any, spelling: Callable[[str], str]) -> None:
        self.cluster = cluster
        self.filters = filters
        self._routes = routes
        self._spelling = spelling

    def name(self, field: str) -> str:
        """A field as this proxy spells it. Envoy reads both spellings."""
        return self._spelling(field)

    def fields(self, values: dict[str, Any]) -> dict[str, Any]:
        return {self.name(field): value for field, value in values.items()}

    @property
    def outlier_detection(self) -> Any:
        return self.cluster[self.name("outlier_detection")]

    def route(self, name: str) -> Any:
        return next(one for one in self._routes if one.get("name") == name)


Edit = Callable[[Made], object]


class AnyProxy(Protocol):
    address: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def stat(self, name: str) -> int: ...


def on_one_machine(folder: Path, backends: Sequence[Backend], edit: Edit | None) -> AnyProxy:
    def mutate(config: Any) -> None:
        (listener,) = config["static_resources"]["listeners"]
        (cluster,) = config["static_resources"]["clusters"]
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        (host,) = manager["route_config"]["virtual_hosts"]
        if edit is not None:
            edit(Made(cluster, host["routes"], manager["http_filters"], str))

    return RunningPolicy(folder, [one.address for one in backends], mutate=mutate)


def in_istio(folder: Path, backends: Sequence[Backend], edit: Edit | None) -> AnyProxy:
    def mutate(made: Any) -> None:
        (cluster,) = (one for one in made["clusters"] if one["name"] == DEPOSIT)
        (host,) = (
            one
            for config in made["routes"]
            for one in config["virtualHosts"]
            if one["name"] == ISTIO_AUTHORITY
        )
        (listener,) = (one for one in made["listeners"] if one["name"] == ISTIO_LISTENER)
        (manager,) = (
            one["typedConfig"]
            for chain in listener["filterChains"]
            for one in chain["filters"]
            if "httpFilters" in one["typedConfig"]
        )
        if edit is not None:
            edit(Made(cluster, host["routes"], manager["httpFilters"], in_camel_case))

    return Proxy(
        "reservation",
        folder,
        {DEPOSIT: [one.address for one in backends]},
        listener=ISTIO_LISTENER,
        mutate=mutate,
    )


PROXIES = {"one machine": on_one_machine, "istio": in_istio}


def in_camel_case(field: str) -> str:
    first, *others = field.split("_")
    return first + "".join(one.capitalize() for one in others)


class Way:
    """`proxy`: a name in PROXIES. `backends`: two that are well and say so, unless others are given."""

    def __init__(
        self, proxy: str, folder: Path, backends: list[Backend] | None = None, edit: Edit | None = None
    ) -> None:
        self.backends = backends or [Backend(ready=True), Backend(ready=True)]
        self.proxy = PROXIES[proxy](folder, self.backends, edit)
        self.proxy.start()
        # As in a pod: the name that reservation dials, and its own proxy behind it.
        options: list[tuple[str, Any]] = [("grpc.default_authority", ISTIO_AUTHORITY)]
        options += [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self.channel = grpc.insecure_channel(self.proxy.address, options)

    def close(self) -> None:
        self.channel.close()
        self.proxy.stop()
        for one in self.backends:
            one.stop()

    def begin(
        self, method: str, timeout: float = 10.0, headers: Sequence[tuple[str, str]] = ()
    ) -> grpc.Future[Any]:
        """A call that goes on by itself."""
        way: grpc.UnaryUnaryMultiCallable[bytes, Any] = self.channel.unary_unary(method)
        return way.future(b"", timeout=timeout, metadata=tuple(headers))

    def call(self, method: str, timeout: float = 10.0) -> grpc.StatusCode:
        return code_of(self.begin(method, timeout))

    def begin_held(self, count: int) -> list[grpc.Future[Any]]:
        """Charges at once, which the instances hold until they are released."""
        for one in self.backends:
            one.state = "held"
        return [self.begin(CHARGE) for _ in range(count)]

    def release(self) -> None:
        for one in self.backends:
            one.release.set()

    def arrived(self, method: str) -> int:
        """At all instances together."""
        return sum(one.calls[method] for one in self.backends)

    @property
    def ejected(self) -> int:
        """Instances that are out now."""
        return self.proxy.stat("outlier_detection.ejections_active")

    def eject(self, count: int = 1) -> Counter[grpc.StatusCode]:
        """Charges, one after the other, until so many instances are out."""
        said: Counter[grpc.StatusCode] = Counter()
        while self.ejected < count:
            said[self.call(CHARGE)] += 1
            assert said.total() < 100, f"nobody was ejected: {said}"
        return said

    def has_ejected_nobody(self) -> bool:
        """Looks when Envoy has noticed one more thing, a broken instance: it notices them in their order."""
        before = self.proxy.stat(DETECTED)
        self.backends[0].state = "unavailable"
        for one in self.backends[1:]:
            one.state = "well"
        self.eject()
        return before == 0 and self.proxy.stat(DETECTED) == 1


def code_of(call: grpc.Future[Any]) -> grpc.StatusCode:
    error = call.exception()
    if error is None:
        return grpc.StatusCode.OK
    assert isinstance(error, grpc.Call)
    return error.code()


def wait_for(seconds: float, satisfied: Callable[[], bool]) -> float:
    """How long it took until `satisfied()`; fails after `seconds`."""
    begin = time.monotonic()
    while not satisfied():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begin
