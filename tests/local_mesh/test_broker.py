"""The private broker: it starts, it keeps its data, and it leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aio_pika
import pytest

from local_mesh.broker import RunningBroker, answers, start_broker
from tests.support.ports import free_ports


def processes_of(home: Path) -> list[str]:
    """Command lines of the living processes that were started with this broker's home."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def wait_until_gone(home: Path, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while processes_of(home):
        assert time.monotonic() < end, processes_of(home)
        time.sleep(0.05)


async def test_a_broker_has_quorum_and_stream_queues(broker: RunningBroker) -> None:
    connection = await aio_pika.connect(broker.fresh_url())
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        for kind in ("quorum", "stream"):
            await channel.declare_queue(kind, durable=True, arguments={"x-queue-type": kind})
            await channel.default_exchange.publish(aio_pika.Message(b"."), kind)


async def test_a_fresh_virtual_host_sees_nothing_of_another(broker: RunningBroker) -> None:
    first = await aio_pika.connect(broker.fresh_url())
    second = await aio_pika.connect(broker.fresh_url())
    async with first, second:
        await (await first.channel()).declare_queue("mine")
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await (await second.channel()).declare_queue("mine", passive=True)


async def test_a_killed_broker_comes_back_with_its_data_and_a_stopped_one_leaves_no_process(
    tmp_path: Path,
) -> None:
    amqp, dist, epmd = free_ports(3)
    broker = start_broker(tmp_path, amqp, dist, epmd)
    try:
        connection = await aio_pika.connect(broker.url)
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
            await channel.default_exchange.publish(aio_pika.Message(b"once"), "kept")
        broker.write_queue_directory()
        killed = broker.pid
        broker.kill()
        assert not answers(amqp)
        broker.start()
        assert broker.pid != killed
        connection = await aio_pika.connect(broker.url)
        async with connection:
            queue = await (await connection.channel()).get_queue("kept")
            message = await queue.get(timeout=10)
            assert message.body == b"once"
            await message.ack()
        assert processes_of(tmp_path)
    finally:
        broker.stop()
    wait_until_gone(tmp_path)


def test_a_broker_dies_with_a_killed_owner(tmp_path: Path) -> None:
    ports = ", ".join(str(port) for port in free_ports(3))
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, time; from local_mesh.broker import start_broker\n"
            f"broker = start_broker(pathlib.Path({str(tmp_path)!r}), {ports})\n"
            "print('up', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    assert len(processes_of(tmp_path)) >= 2
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_until_gone(tmp_path)
