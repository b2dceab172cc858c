"""python -m tests.rolling [--rounds N]: each service is replaced N times, one after the other, under load.

Then one of two instances is killed at its work, and the other one must take it over. On a mesh of its own.
Exit code 0: no call failed, and the books agree. 1: not so. 3: void, it proves nothing."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from local_mesh.broker import start_broker
from tests.rolling.deaths import OPEN, taken_over
from tests.rolling.run import Scene, Void, killed, rolling, scene, undrained
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer

EXIT_FAILED = 1
EXIT_VOID = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rolling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--deaths", action="store_true", help="only the deaths at work")
    parser.add_argument("--at-once", action="store_true", help="replace all services of a round together")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"argument --rounds: {options.rounds} is not 1 or more")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # PostgreSQL would outlive us
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-rolling-"))
    with ExitStack() as stack:
        server = PostgresServer(folder / "postgresql")
        stack.callback(server.stop)
        amqp, dist, epmd = free_ports(3)
        broker = start_broker(folder / "rabbitmq", amqp, dist, epmd)
        stack.callback(broker.stop)

        def told(fate: str, failed: list[str]) -> None:
            print(f"control: reservation {fate}, failed calls {len(failed)}", flush=True)
            for one in failed[:3]:
                print(f"  {one}", flush=True)

        async def deaths(mesh: Scene) -> int:
            try:
                for service in OPEN:
                    print(await taken_over(mesh, service), flush=True)
            except Void as void:
                print(void, flush=True)
                return EXIT_VOID
            except AssertionError as error:
                print(f"FAILED {error}", flush=True)
                return EXIT_FAILED
            return 0

        async def run() -> int:
            async with scene(folder, broker, server) as mesh:
                if options.deaths:
                    return await deaths(mesh)
                outcome = await rolling(mesh, options.rounds, at_once=options.at_once)
                print(outcome, flush=True)
                try:
                    outcome.check()
                except Void:
                    print("VOID", flush=True)
                    return EXIT_VOID
                except AssertionError:
                    return EXIT_FAILED
                told("stopped without a drain", await undrained(mesh, "reservation"))
                failed = await killed(mesh, "reservation")
                told("killed", failed)
                return (await deaths(mesh)) if failed else EXIT_VOID

        code = asyncio.run(run())
    if code == 0:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs are kept in {folder}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
