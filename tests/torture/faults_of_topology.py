"""What the running broker loses, or is given by a stranger; and a node of three that dies.

Bindings and exchanges have to come back by themselves: the run declares nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from aio_pika.abc import AbstractQueue

from dinemesh.kit.bus import DEAD_EXCHANGE, EXCHANGE
from local_mesh.broker import RunningBroker, answers
from local_mesh.failure import Failure
from tests.support.broker_cluster import RunningCluster
from tests.support.mesh import state_of
from tests.support.process import NotHealthy
from tests.torture.plan import QUEUES, Blow
from tests.torture.scene import PATIENCE, Scene, Witness, see

FULL = 5
"""Messages that the stranger's queue takes."""
FULL_SECONDS = 4.0
"""How long it stays full, at least."""


async def binding_lost(scene: Scene, blow: Blow) -> Witness:
    """One of a subscriber's bindings, or all of them."""
    async with scene.alone_with("rabbitmq"):
        there = await _bindings(scene, blow.target)
        see(there > 0, f"{blow.target} has no binding")
        begin = time.monotonic()
        which = "Bs" if blow.chance % 2 else f"[lists:nth({blow.chance // 2 % there + 1}, lists:sort(Bs))]"
        lost = await _count(
            scene,
            f"Bs = {_bindings_of(scene, blow.target)},"
            f'Lost = {which}, [ok = rabbit_binding:remove(B, <<"torture">>) || B <- Lost],'
            f"true = length({_bindings_of(scene, blow.target)}) < length(Bs), length(Lost)",
        )
        after = await _back(scene, {blow.target: there}, EXCHANGE)
        what = f"{lost} of {there} bindings of {blow.target} removed, back after {after:.1f} s"
        return Witness(blow, what, begin, time.monotonic())


async def exchange_lost(scene: Scene, blow: Blow) -> Witness:
    """With all bindings to it."""
    async with scene.alone_with("rabbitmq"):
        there = {queue: await _bindings(scene, queue) for queue in QUEUES}
        begin = time.monotonic()
        name = _resource(scene, "exchange", blow.target)
        await _count(
            scene,
            f'ok = rabbit_exchange:delete({name}, false, <<"torture">>),'
            f"{{error, not_found}} = rabbit_exchange:lookup({name}), 0",
        )
        after = await _back(scene, there, blow.target)
        what = f"{blow.target} deleted with its bindings, all back after {after:.1f} s"
        return Witness(blow, what, begin, time.monotonic())


async def queue_full(scene: Scene, blow: Blow) -> Witness:
    """Somebody binds a queue to everything, which refuses what is more than a few messages."""
    async with scene.alone_with("rabbitmq"):
        begin = time.monotonic()
        async with scene.bus.channel(1) as channel:
            queue = await channel.declare_queue(
                blow.target, arguments={"x-max-length": FULL, "x-overflow": "reject-publish"}
            )
            try:
                await queue.bind(EXCHANGE, routing_key="#")
                end = begin + PATIENCE
                while await _messages(scene, queue) < FULL:
                    see(not scene.is_over() and time.monotonic() < end, "it was never full")
                    await asyncio.sleep(0.05)
                full, unsent = time.monotonic(), await scene.unsent()
                await asyncio.sleep(FULL_SECONDS + blow.seconds)
                lasted = time.monotonic() - full
                waiting = await scene.unsent()
            finally:
                with contextlib.suppress(Exception):
                    await channel.queue_delete(blow.target)
        what = f"full for {lasted:.1f} s; {unsent} events waited, then {waiting}"
        return Witness(blow, what, begin, time.monotonic())


async def kill_node(scene: Scene, blow: Blow) -> Witness:
    """The one that leads a queue."""
    cluster = scene.broker
    assert isinstance(cluster, RunningCluster)
    async with scene.alone_with("rabbitmq"):
        in_flight = await scene.busy(blow.target)
        leaders = await asyncio.to_thread(cluster.leaders, scene.mesh.amqp_url)
        see(blow.target in leaders, f"nobody leads {blow.target}")
        place = leaders[blow.target]
        node = cluster.nodes[place]
        old = node.pid
        begin = time.monotonic()
        node.kill()
        see(state_of(old) == "", f"process {old} lives on")
        see(not answers(node.ports.amqp), "the node still answers")
        await asyncio.sleep(blow.seconds)
        node.spawn()
        await asyncio.to_thread(node.wait_until_ready)
        await asyncio.to_thread(cluster.wait_until_whole)
        see(node.pid != old, "the process is the same one")
        what = f"{in_flight}, node {place} led {blow.target}: pid {old} gone, pid {node.pid} there"
        return Witness(blow, what, begin, time.monotonic())


async def _back(scene: Scene, there: dict[str, int], exchange: str) -> float:
    """Waits until the exchange is there and each queue has its bindings again; how long that took. Raises
    NotHealthy if it does not happen."""
    begin = time.monotonic()
    name = _resource(scene, "exchange", exchange)
    found = f"case rabbit_exchange:lookup({name}) of {{ok, _}} -> 1; _ -> 0 end"
    while True:
        now = {queue: await _bindings(scene, queue) for queue in there}
        if now == there and await _count(scene, found):
            return time.monotonic() - begin
        if time.monotonic() > begin + PATIENCE:
            missing = [f"{queue} has {now[queue]} of {there[queue]}" for queue in there if now != there]
            raise NotHealthy(f"{PATIENCE:g} s later bindings of {exchange} are missing: {', '.join(missing)}")
        await asyncio.sleep(0.2)


async def _bindings(scene: Scene, queue: str) -> int:
    return await _count(scene, f"length({_bindings_of(scene, queue)})")


def _bindings_of(scene: Scene, queue: str) -> str:
    """Erlang for those of a queue to the mesh's exchanges; the broker's own one binds every queue."""
    name = _resource(scene, "queue", queue)
    ours = f'lists:member(element(4, element(2, B)), [<<"{EXCHANGE}">>, <<"{DEAD_EXCHANGE}">>])'
    return f"[B || B <- rabbit_binding:list_for_destination({name}), {ours}]"


def _resource(scene: Scene, kind: str, name: str) -> str:
    host = scene.mesh.amqp_url.rpartition("/")[2]
    return f'rabbit_misc:r(<<"{host}">>, {kind}, <<"{name}">>)'


async def _messages(scene: Scene, queue: AbstractQueue) -> int:
    declared = await queue.declare()
    return declared.message_count or 0


async def _count(scene: Scene, expression: str) -> int:
    """Evaluated by a node that runs."""
    return int(await asyncio.to_thread(_evaluate, scene.broker, expression))


def _evaluate(broker: RunningBroker | RunningCluster, expression: str) -> str:
    if isinstance(broker, RunningBroker):
        return broker.evaluate(expression)
    for node in broker.nodes:
        if node.is_running:
            with contextlib.suppress(Failure):
                return node.evaluate(expression)
    raise Failure("no node of the cluster answers")
