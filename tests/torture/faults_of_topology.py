"""What the running broker loses, or is given by a stranger; and a node of three that dies.

Bindings and exchanges have to come back by themselves: the run declares nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from aio_pika.abc import AbstractQueue

from dinemesh.kit.bus import EXCHANGE
from dinemesh.kit.bus import dead_letter_queue as dead
from local_mesh.broker import RunningBroker, answers
from local_mesh.failure import Failure
from tests.support.broker_cluster import RunningCluster
from tests.support.mesh import state_of
from tests.support.process import NotHealthy
from tests.torture.plan import QUEUES, Blow
from tests.torture.scene import PATIENCE, Scene, Witness, see

HEALED_SECONDS = 90.0
"""Bindings and exchanges that were lost are there again by then."""
EVALUATE_SECONDS = 20.0
FULL = 5
"""Messages that the stranger's queue takes."""
LEAST_TOLD = 10
"""Of so many events subscribers must have taken some, whoever else is bound."""
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
        after = await _back(scene, {blow.target: there})
        what = f"{lost} of {there} bindings of {blow.target} removed, back after {after:.1f} s"
        return Witness(blow, what, begin, time.monotonic())


async def exchange_lost(scene: Scene, blow: Blow) -> Witness:
    """With all bindings to it: the mesh's own, or one of those for dead letters."""
    async with scene.alone_with("rabbitmq"):
        found = f"[X || X <- rabbit_exchange:list({_host(scene)}), {_is_ours('element(2, X)')}]"
        if blow.target != EXCHANGE:
            found = f'[X || X <- {found}, element(4, element(2, X)) =/= <<"{EXCHANGE}">>]'
        many = await _count(scene, f"length({found})")
        see(many > 0, "there is no such exchange")
        name = (
            _resource(scene, "exchange", EXCHANGE)
            if blow.target == EXCHANGE
            else f"element(2, lists:nth({blow.chance % many + 1}, lists:sort({found})))"
        )
        there = {queue: await _bindings(scene, queue) for queue in (*QUEUES, *map(dead, QUEUES))}
        begin = time.monotonic()
        await _count(
            scene,
            f'Name = {name}, ok = rabbit_exchange:delete(Name, false, <<"torture">>),'
            "{error, not_found} = rabbit_exchange:lookup(Name), 0",
        )
        after = await _back(scene, there)
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
                full, told, taken = time.monotonic(), await scene.told(), await scene.taken()
                await asyncio.sleep(FULL_SECONDS + blow.seconds)
                lasted = time.monotonic() - full
                told, taken = await scene.told() - told, await scene.taken() - taken
                waiting = await scene.unsent()
                see(await _messages(scene, queue) == FULL, "it did not stay full")
            finally:
                with contextlib.suppress(Exception):
                    await channel.queue_delete(blow.target)
        what = f"full for {lasted:.1f} s; {told} events were told meanwhile, {taken} taken, {waiting} unsent"
        if told >= LEAST_TOLD and not taken:
            raise NotHealthy(f"{what}: a stranger holds up everybody")
        return Witness(blow, what, begin, time.monotonic())


async def kill_node(scene: Scene, blow: Blow) -> Witness:
    """The one that leads a queue."""
    cluster = scene.broker
    assert isinstance(cluster, RunningCluster)
    # What is caught to be delayed would be lost with its consumer.
    async with scene.alone_with("deliveries", "rabbitmq"):
        in_flight = await scene.busy(blow.target)
        place = await _leader(scene, cluster, blow.target)
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


async def _leader(scene: Scene, cluster: RunningCluster, queue: str) -> int:
    """The node that leads `queue`; after the last kill it may still be elected."""
    end = time.monotonic() + PATIENCE
    while True:
        leaders = await asyncio.to_thread(cluster.leaders, scene.mesh.amqp_url)
        if queue in leaders:
            return leaders[queue]
        see(time.monotonic() < end, f"nobody leads {queue}")
        await asyncio.sleep(0.2)


async def _back(scene: Scene, there: dict[str, int]) -> float:
    """Waits until each queue has its bindings again; how long that took. Raises NotHealthy if it does not
    happen."""
    begin = time.monotonic()
    while (now := {queue: await _bindings(scene, queue) for queue in there}) != there:
        if time.monotonic() > begin + HEALED_SECONDS:
            missing = [
                f"{queue} has {now[queue]} of {there[queue]}" for queue in there if now[queue] != there[queue]
            ]
            raise NotHealthy(f"{HEALED_SECONDS:g} s later bindings are missing: {', '.join(missing)}")
        await asyncio.sleep(0.2)
    return time.monotonic() - begin


async def _bindings(scene: Scene, queue: str) -> int:
    return await _count(scene, f"length({_bindings_of(scene, queue)})")


def _bindings_of(scene: Scene, queue: str) -> str:
    """Erlang for those of a queue to the mesh's exchanges; the broker's own one binds every queue."""
    name = _resource(scene, "queue", queue)
    return f"[B || B <- rabbit_binding:list_for_destination({name}), {_is_ours('element(2, B)')}]"


def _is_ours(exchange: str) -> str:
    """Erlang: neither the default exchange nor one that every virtual host has."""
    name = f"element(4, {exchange})"
    return f'{name} =/= <<>>, binary:match({name}, <<"amq.">>) =:= nomatch'


def _host(scene: Scene) -> str:
    return f'<<"{scene.mesh.amqp_url.rpartition("/")[2]}">>'


def _resource(scene: Scene, kind: str, name: str) -> str:
    return f'rabbit_misc:r({_host(scene)}, {kind}, <<"{name}">>)'


async def _messages(scene: Scene, queue: AbstractQueue) -> int:
    declared = await queue.declare()
    return declared.message_count or 0


async def _count(scene: Scene, expression: str) -> int:
    """Evaluated by a node that runs."""
    return int(await asyncio.to_thread(_evaluate, scene.broker, expression))


def _evaluate(broker: RunningBroker | RunningCluster, expression: str) -> str:
    nodes = [broker] if isinstance(broker, RunningBroker) else broker.nodes
    end = time.monotonic() + EVALUATE_SECONDS
    while True:
        for node in nodes:
            try:
                return node.evaluate(expression)
            except Failure as failure:
                # A busy node, or one that starts, lets nobody in at times; then nothing was done.
                if "failed to connect" not in str(failure) or time.monotonic() > end:
                    raise
        time.sleep(0.2)
