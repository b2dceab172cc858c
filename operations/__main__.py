"""python -m operations: audit, pending, dead letters, refunds. `--help` says what each command needs.

Addresses come from the environment as well, and better: a command line is seen by everybody on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta

from operations import backlog, events, lapses, refunds, snapshot
from operations.addresses import AMQP, PROVIDER, RETENTION_DAYS, TOKEN, database
from operations.audit import PATIENCE_SECONDS, audit
from operations.broker import QUEUES, NoBroker, NoQueue
from operations.limits import Limits
from operations.refunds import WAIT_SECONDS
from operations.snapshot import Sources
from operations.streams import Unreadable

EXIT_WRONG = 1
EXIT_CANNOT = 2

MOST = 20
"""Lines of one kind that a person reads."""
MOST_DAYS = 3650
_DATABASES = ("reservation", "deposit", "restaurant", "history")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done, and nothing is wrong. 1: something is wrong. 2: it could not be done."""
    options = parser().parse_args(arguments)
    try:
        code: int = asyncio.run(options.run(options))
    except (Unreadable, NoBroker, NoQueue, events.Unwritable, refunds.NotDone) as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        return EXIT_CANNOT
    return code


async def _audit(options: argparse.Namespace) -> int:
    sources = Sources(
        **{f"{name}_db": getattr(options, f"{name}_db") for name in _DATABASES},
        provider=options.provider,
        amqp=options.amqp,
        queues=_queues(options),
    )
    report = await audit(sources, _limits(options), patience_seconds=options.patience)
    print(report)
    return 0 if report.clean else EXIT_WRONG


async def _pending(options: argparse.Namespace) -> int:
    """What cannot be read is part of the answer: when the broker is down, much waits for it."""
    sources = Sources(
        **{f"{name}_db": getattr(options, f"{name}_db") for name in _DATABASES},
        amqp=options.amqp,
        queues=_queues(options),
    )
    missing: list[str] = []
    async with snapshot.opened(sources, missing) as reader:
        listing = await asyncio.to_thread(backlog.listed, reader, _limits(options), options.most)
    for name in missing:
        print(f"NOT READ  {name}\n  do:   make status: is it up?\n")
    print(listing)
    return 0 if listing.is_empty and not missing else EXIT_WRONG


async def _retry_refund(options: argparse.Namespace) -> int:
    token = os.environ.get(TOKEN, "")
    retry = refunds.Retry(options.deposit_db, options.deposit_address, token)
    outcome = await retry.run(options.deposit, options.wait)
    print(outcome)
    return EXIT_WRONG if outcome.refused else 0


async def _let_lapse(options: argparse.Namespace) -> int:
    print(await lapses.let_lapse(options.reservation_db, options.until))
    return 0


async def _lift_refund_block(options: argparse.Namespace) -> int:
    count = await refunds.lift_block(options.provider, None if options.all else options.charge)
    print(f"the sandbox refunds {count} charges again that it refused to refund")
    return 0


async def _dead_letters(options: argparse.Namespace) -> int:
    letters = await events.dead_letters(options.amqp, _queues(options))
    print(events.table(letters))
    return EXIT_WRONG if letters else 0


async def _redrive(options: argparse.Namespace) -> int:
    if not options.queue and not options.all:
        raise events.Unwritable("which queue? Name it with --queue, or say --all")
    sent = await events.redrive(options.amqp, _queues(options))
    for queue, count in sent.items():
        print(f"{queue}: {count} sent back")
    return 0


async def _replay(options: argparse.Namespace) -> int:
    given = {name: getattr(options, f"{name}_db") for name in _DATABASES[:-1]}
    if not any(given.values()):
        raise events.Unwritable(
            f"whose events? Name a database with {', '.join(f'--{name}-db' for name in given)}"
        )
    for name, url in given.items():
        if url is not None:
            print(f"{name}: {await events.replay(url, options.since)}")
    return 0


def _limits(options: argparse.Namespace) -> Limits:
    return Limits(
        timedelta(seconds=options.on_the_way),
        timedelta(seconds=options.undecided),
        timedelta(seconds=options.unmarked),
        timedelta(days=options.retention_days),
    )


def _queues(options: argparse.Namespace) -> Sequence[str]:
    return tuple(options.queue or QUEUES)


def parser() -> argparse.ArgumentParser:
    """Of all commands; what the environment has, need not be given."""
    whole = argparse.ArgumentParser(prog="python -m operations", description="The operator's commands.")
    commands = whole.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "audit", help="hold all services' books against each other; changes nothing"
    )
    _add_databases(command)
    _add_address(command, "--provider", "ADDRESS", PROVIDER, "the sandbox, host:port")
    _add_broker(command)
    command.add_argument(
        "--patience",
        metavar="SECONDS",
        type=_seconds,
        default=PATIENCE_SECONDS,
        help="what is wrong is looked at again after so long (%(default)s)",
    )
    _add_limits(command)
    command.set_defaults(run=_audit)

    command = commands.add_parser("pending", help="list what waits longer than it may, and what to do")
    _add_databases(command)
    _add_broker(command)
    _add_limits(command)
    command.add_argument(
        "--most", metavar="N", type=_count, default=MOST, help="of each kind (%(default)s), the oldest first"
    )
    command.set_defaults(run=_pending)

    command = commands.add_parser(
        "retry-refund",
        help=f"let deposit try the refused refunds of one deposit again; an operator's token is in {TOKEN}",
    )
    _add_database(command, "deposit")
    command.add_argument("--deposit-address", metavar="ADDRESS", required=True, help="deposit, host:port")
    command.add_argument("--deposit", metavar="ID", required=True, help="whose refunds")
    command.add_argument(
        "--wait", metavar="SECONDS", type=_seconds, default=WAIT_SECONDS, help="for an outcome (%(default)s)"
    )
    command.set_defaults(run=_retry_refund)

    command = commands.add_parser("lift-refund-block", help="the sandbox's switch: refunds succeed again")
    _add_address(command, "--provider", "ADDRESS", PROVIDER, "the sandbox, host:port")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--charge", metavar="ID", type=_some, help="of this deposit")
    which.add_argument("--all", action="store_true", help="of all deposits")
    command.set_defaults(run=_lift_refund_block)

    command = commands.add_parser(
        "let-lapse", help="the clock is right: what reservation has held back may end (`pending` lists it)"
    )
    _add_database(command, "reservation")
    command.add_argument(
        "--until",
        metavar="TIME",
        type=_moment,
        required=True,
        help="what was due by then, as `pending` says it",
    )
    command.set_defaults(run=_let_lapse)

    command = commands.add_parser("dead-letters", help="list the events that could not be taken")
    _add_broker(command)
    command.set_defaults(run=_dead_letters)

    command = commands.add_parser("redrive", help="send each dead letter back to its queue, once")
    _add_broker(command)
    command.add_argument("--all", action="store_true", help="of all queues of the mesh")
    command.set_defaults(run=_redrive)

    command = commands.add_parser(
        "replay",
        help="publish the outboxes again, after a broker was lost; subscribers ignore what they know",
    )
    for name in _DATABASES[:-1]:
        _add_database(command, name, required=False)
    command.add_argument(
        "--since", metavar="SECONDS", type=_seconds, help="only events of the last so many seconds (all)"
    )
    command.set_defaults(run=_replay)
    return whole


def _add_databases(command: argparse.ArgumentParser) -> None:
    for name in _DATABASES:
        _add_database(command, name)


def _add_database(command: argparse.ArgumentParser, name: str, *, required: bool = True) -> None:
    told = f"database of {name}"
    _add_address(command, f"--{name}-db", "URL", database(name), told, required=required)


def _add_address(
    command: argparse.ArgumentParser,
    option: str,
    kind: str,
    variable: str,
    told: str,
    *,
    required: bool = True,
) -> None:
    usual = os.environ.get(variable) or None
    command.add_argument(
        option, metavar=kind, default=usual, required=required and usual is None, help=f"{told} ({variable})"
    )


def _add_limits(command: argparse.ArgumentParser) -> None:
    limits = Limits()
    for name, usual, told in (
        ("on-the-way", limits.on_the_way, "an event may be between two services for so long"),
        ("undecided", limits.undecided, "the provider may leave a charge or refund open for so long"),
        (
            "unmarked",
            limits.unmarked,
            "reservation's UNMARKED_SECONDS: what nobody marked ends so long after its meal",
        ),
    ):
        command.add_argument(
            f"--{name}",
            metavar="SECONDS",
            type=_seconds,
            default=usual.total_seconds(),
            help=f"{told} (%(default)s)",
        )
    command.add_argument(
        "--retention-days",
        metavar="DAYS",
        type=_days,
        # What comes out of the environment is checked like what is typed.
        default=os.environ.get(RETENTION_DAYS) or str(limits.retention.days),
        help=f"the services keep what was sent or taken for so long ({RETENTION_DAYS}, %(default)s)",
    )


def _add_broker(command: argparse.ArgumentParser) -> None:
    _add_address(command, "--amqp", "URL", AMQP, "the broker")
    command.add_argument(
        "--queue",
        metavar="NAME",
        action="append",
        type=_some,
        help="a subscriber's queue, repeatable (the mesh's own)",
    )


def _some(text: str) -> str:
    """What must not be empty: a shell's variable that is not set stands for nothing, and never for all."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time, such as 2027-05-01T18:00:00Z; `pending` names the one to give"
        ) from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError("must end with Z or an offset")
    return moment


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_DAYS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days, 1 to {MOST_DAYS}, such as 30")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


if __name__ == "__main__":
    # What cannot be done is said once, by the command itself, and not by each attempt below it.
    logging.disable(logging.CRITICAL)
    sys.exit(main())
