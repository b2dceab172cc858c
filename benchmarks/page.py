"""The table of `make bench`: how it is printed, and what the docs say because of it.

docs/BENCHMARKS.md holds the last table as it was printed. What README.md and docs/SCALE.md say of it is made
from there: `python -m benchmarks.page` writes it anew after another table was pasted, and
tests/test_benchmarks.py holds that nobody has forgotten to.
"""

from __future__ import annotations

import argparse
import functools
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_mesh.settings import edge_settings, service_defaults

ROOT = Path(__file__).resolve().parent.parent
PAGE, README, SCALE = ROOT / "docs/BENCHMARKS.md", ROOT / "README.md", ROOT / "docs/SCALE.md"

LABEL, CELL = 36, 16
_TABLE = re.compile(r"(<!-- make bench -->\n```text\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
_MADE = re.compile(r"(<!-- made by benchmarks.page -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def line(what: str, *cells: str) -> str:
    return f"{what:<{LABEL}}{''.join(f'{cell:>{CELL}}' for cell in cells)}".rstrip()


class Figures:
    """A table that was printed: cells by section, row and column."""

    def __init__(self, printed: str) -> None:
        self._cells: dict[tuple[str, str], list[str]] = {}
        section, above = "", ""
        columns: list[str] = []
        for text in printed.splitlines():
            label, cells = text[:LABEL].rstrip(), _cells(text)
            if label and not label.startswith(" "):
                section = label
                if not above[:LABEL].strip() and above:  # what the columns are stands in two lines
                    tops = _cells(above)
                    columns = [
                        f"{top} {name}".strip()
                        for top, name in zip(tops + [""] * (len(cells) - len(tops)), cells, strict=True)
                    ]
            elif label:
                self._cells.setdefault((section, label.strip()), cells)
            above = text
        self._columns = columns

    def cell(self, section: str, row: str, column: str) -> str:
        """As it was printed. `section` may be the end of its name. Raises LookupError."""
        for (name, label), cells in self._cells.items():
            if name.endswith(section) and label == row:
                return cells[self._columns.index(column)]
        raise LookupError(f"the table of `make bench` has no row {row!r} in {section!r}")

    def number(self, section: str, row: str, column: str) -> float:
        """Without its unit. Raises LookupError, and ValueError if nothing was measured."""
        return float(self.cell(section, row, column).split()[0].replace(",", ""))


def _cells(text: str) -> list[str]:
    return [text[start : start + CELL].strip() for start in range(LABEL, len(text), CELL)]


UNDER_LOAD, ALONE, QUIET, EDGE = "calls in flight", "one call at a time", "no calls", "JSON through the edge"
SQLITE, POSTGRESQL, HOPS = "SQLite group", "PostgreSQL group", "two hops"


def in_readme(figures: Figures) -> str:
    """Five lines."""
    engines = (SQLITE, POSTGRESQL)

    def row(what: str, cell: Callable[[str], str], hops: str = "") -> str:
        return f"| {what} | {' | '.join(map(cell, engines))} | {hops} |\n"

    def of_echoes(column: str) -> str:
        spent = figures.cell(UNDER_LOAD, "processor for one", column)
        return f"{spent}, {figures.cell(UNDER_LOAD, 'all of it in echoes (servers)', column)} echoes"

    def alone(column: str) -> str:
        confirmed = figures.cell(ALONE, "from the call to confirmed, p50", column)
        return f"{figures.cell(ALONE, 'answer, p50', column)}, {confirmed}"

    rate = "answered or confirmed/s"
    return (
        "| | SQLite | PostgreSQL | two plain hops |\n|---|---|---|---|\n"
        + row(
            "confirmed reservations/s, 100 calls in flight",
            lambda column: figures.cell(UNDER_LOAD, rate, column),
            f"{figures.cell(UNDER_LOAD, rate, HOPS)} calls/s",
        )
        + row(
            "processor time of all parts for one",
            of_echoes,
            figures.cell(UNDER_LOAD, "processor for one", HOPS),
        )
        + row(
            "one customer alone: answered, confirmed (p50)", alone, figures.cell(ALONE, "answer, p50", HOPS)
        )
        + row(
            "JSON through the edge, of gRPC to the service",
            lambda column: figures.cell(EDGE, "of gRPC to the service", column),
        )
        + row(
            "all parts without a call, of one processor",
            lambda column: figures.cell(QUIET, "processor", column),
        )
    )


# What is taken for granted in docs/SCALE.md, beside what was measured.
RATES = (100, 1_000, 10_000)
BUSY = 0.6
"""Of a pod's processor at the peak."""
LEAST_PODS = 2
CARD_SECONDS = 1.0
"""What a card network takes for a charge."""
CHARGES = {
    "reservation": int(service_defaults("reservation")["CHARGES_AT_ONCE"]),
    "deposit": int(service_defaults("deposit")["CHARGES_IN_FLIGHT_LIMIT"]),
}
"""In flight in one pod."""
GATEWAY_CALLS = int(edge_settings()["RATE_PER_SECOND"])
"""A second, of one pod of the gateway."""
CONNECTIONS = 1 + int(service_defaults("reservation")["READER_THREADS"])
"""Of a pod to its database."""
REPLICAS = 3
"""Nodes of RabbitMQ that write each message of a quorum queue."""
MEAN = 0.25
"""Of the peak, over a day."""
DAYS = 30
"""What is on the disks, as long as `DINEMESH_RETENTION_DAYS` keeps what need not be kept for good."""
SERVICES = ("reservation", "deposit", "restaurant", "history")


@dataclass(frozen=True)
class Need:
    """One line of docs/SCALE.md."""

    what: str
    arithmetic: str
    of: Callable[[float], float]
    """By bookings a second."""
    digits: int = 0

    def row(self) -> str:
        cells = (f"{self.of(rate):,.{self.digits}f}" for rate in RATES)
        return f"| {self.what} | {self.arithmetic} | {' | '.join(cells)} |\n"


def needs(figures: Figures) -> Sequence[Need]:
    """Out of the column of PostgreSQL, with groups."""

    def spent(part: str) -> float:
        return figures.number(UNDER_LOAD, part, POSTGRESQL)

    def processors(what: str, each: float, times: int = 1) -> Need:
        copies = f" * {times} nodes" if times > 1 else ""
        return Need(what, f"N * {each:.2f} ms{copies}", lambda rate: times * rate * each / 1000, 1)

    def pods(service: str) -> Callable[[float], float]:
        def count(rate: float) -> float:
            busy = math.ceil(rate * spent(service) / 1000 / BUSY)
            waiting = math.ceil(rate * CARD_SECONDS / CHARGES[service]) if service in CHARGES else 0
            return max(LEAST_PODS, busy, waiting)

        return count

    def per_second(what: str, row: str) -> list[Need]:
        found = []
        for how, section in (("", UNDER_LOAD), (", if each came alone", ALONE)):
            each = figures.number(section, row, POSTGRESQL)
            found.append(Need(what + how, f"N * {each:g}", functools.partial(operator.mul, each)))
        return found

    whole = figures.number(UNDER_LOAD, "servers alone", POSTGRESQL)
    found = [
        processors("all parts, the sandbox too: processors", whole),
        processors(
            "... if each came alone: processors",
            figures.number(ALONE, "processor for one", POSTGRESQL),
        ),
    ]
    for service in SERVICES:
        found.append(processors(f"{service}: processors", spent(service)))
        said = f"processors / {BUSY:g}"
        if service in CHARGES:
            said += f", or N * {CARD_SECONDS:g} s / {CHARGES[service]} charges at once"
        found.append(Need(f"{service}: pods", f"{said}; at least {LEAST_PODS}", pods(service)))
    stored = figures.number(UNDER_LOAD, "databases grow by, for one", POSTGRESQL)
    logged = figures.number(UNDER_LOAD, "write-ahead log, for one", POSTGRESQL)
    streamed = figures.number(UNDER_LOAD, "log of events grows by, for one", POSTGRESQL)
    each_pod = [pods(service) for service in SERVICES]
    days = MEAN * 86_400 * DAYS
    return [
        *found,
        processors("proxies to deposit: processors", spent("proxy to deposit")),
        processors("gateway: processors", figures.number(EDGE, "of it the edge", POSTGRESQL)),
        Need(
            "gateway: pods",
            f"N / {GATEWAY_CALLS} calls/s (`edge.rate`), bookings alone; at least {LEAST_PODS}",
            lambda rate: max(LEAST_PODS, math.ceil(rate / GATEWAY_CALLS)),
        ),
        processors("PostgreSQL: processors", spent("PostgreSQL")),
        *per_second("PostgreSQL: commits/s", "commits for one"),
        Need("PostgreSQL: write-ahead log, MB/s", f"N * {logged:g} kB", lambda rate: rate * logged / 1000, 1),
        Need(
            "PostgreSQL: connections",
            f"pods * {CONNECTIONS}",
            lambda rate: CONNECTIONS * sum(count(rate) for count in each_pod),
        ),
        Need(
            f"PostgreSQL: bookings of the last {DAYS} days, TB",
            f"N * {MEAN:g} * 86,400 s * {DAYS} * {stored:g} kB",
            lambda rate: rate * days * stored / 1e9,
            1,
        ),
        processors("RabbitMQ: processors", spent("RabbitMQ"), REPLICAS),
        *per_second("RabbitMQ: messages published/s", "AMQP messages published for one"),
        *per_second("RabbitMQ: messages delivered/s", "AMQP messages delivered for one"),
        Need(
            f"RabbitMQ: log of the last {DAYS} days, TB on each node",
            f"N * {MEAN:g} * 86,400 s * {DAYS} * {streamed:g} kB",
            lambda rate: rate * days * streamed / 1e9,
            1,
        ),
    ]


def in_scale(figures: Figures) -> str:
    head = "| what | arithmetic (N bookings a second) | " + " | ".join(f"{rate:,}" for rate in RATES) + " |\n"
    return head + "|---|---|" + "--:|" * len(RATES) + "\n" + "".join(need.row() for need in needs(figures))


def table_in(page: str) -> str:
    """The table that stands on the page."""
    found = _TABLE.search(page)
    if found is None:
        raise LookupError("docs/BENCHMARKS.md has no block of text below <!-- make bench -->")
    return found[2]


def with_table(page: str, printed: str) -> str:
    return _TABLE.sub(lambda found: f"{found[1]}{printed.rstrip()}\n{found[3]}", page, count=1)


def with_figures(page: str, made: str) -> str:
    """The same page with what was made put between its marks."""
    if not _MADE.search(page):
        raise LookupError("no <!-- made by benchmarks.page --> in it")
    return _MADE.sub(lambda found: f"{found[1]}\n{made}\n{found[3]}", page, count=1)


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    arguments.add_argument("printed", type=Path, nargs="?", help="what `make bench` printed, to be put in")
    printed = arguments.parse_args().printed
    page = PAGE.read_text()
    if printed is not None:
        page = with_table(page, printed.read_text())
        PAGE.write_text(page)
    figures = Figures(table_in(page))
    README.write_text(with_figures(README.read_text(), in_readme(figures)))
    SCALE.write_text(with_figures(SCALE.read_text(), in_scale(figures)))


if __name__ == "__main__":
    main()
