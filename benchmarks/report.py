"""The table of `make bench`: one line a row, one column a thing that was measured."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from benchmarks.measured import KINDS, Done, Measured, Round, Size
from benchmarks.meters import GENERATOR, PARTS, POSTGRESQL, SUPERVISOR
from benchmarks.page import line
from benchmarks.table import milliseconds

ECHO, TWO_HOPS = "echo", "two hops"

Cell = Callable[[Measured], float | None]


def median(values: Sequence[float | None], digits: int = 1, unit: str = "") -> str:
    """Of the rounds; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{digits}f}{unit}" if known else "-"


def spread(values: Sequence[float]) -> str:
    return f"{min(values):,.0f}-{max(values):,.0f}"


class Report:
    """One line a row, one column a thing that was measured."""

    def __init__(self, rounds: Sequence[Round], size: Size) -> None:
        self._rounds = rounds
        self._size = size
        self._columns = list(rounds[0].meshes)

    def print(self) -> None:
        size = self._size
        self._row("", "", "", *(KINDS[column].engine for column in self._columns))
        modes = [KINDS[column].mode for column in self._columns]
        self._row(f"{size.in_flight} calls in flight", ECHO, TWO_HOPS, *modes)
        self._under_load()
        self._row("one call at a time")
        self._one_at_a_time()
        self._row("no calls")
        self._part_rows(
            "processor", lambda one: {part: 100 * share for part, share in one.quiet.items()}, " %"
        )
        self._row("JSON through the edge")
        self._through_the_edge()
        self._row("memory after it")
        self._part_rows("", lambda one: one.memory, " MB", digits=0)
        print()
        for column in self._columns:
            loads = [one for each in self._of(column) for one in (each.loaded, each.edge)]
            answers = sum((one.load.outcomes for one in loads), Counter[str]())
            confirmed = sum(one.confirmed for one in loads)
            print(f"{column}: {confirmed:,} confirmed in the database, answers {dict(answers)}")

    def _under_load(self) -> None:
        floors = [[one.echo for one in self._rounds], [one.hops for one in self._rounds]]
        rates = [[one.per_second for one in column] for column in floors]
        rates += [[one.loaded.per_second for one in self._of(column)] for column in self._columns]
        self._row("  answered or confirmed/s", *(median(column, 0) for column in rates))
        self._row("    lowest to highest round", *map(spread, rates))
        self._row(
            "    of two hops",
            "",
            "",
            *(
                median([each / hops for each, hops in zip(column, rates[1], strict=True)], 3)
                for column in rates[2:]
            ),
        )
        taken = [[one for each in column for one in each.load.taken] for column in floors]
        taken += [
            [one for each in self._of(column) for one in each.loaded.load.taken] for column in self._columns
        ]
        for share in (0.5, 0.99):
            self._row(f"  answer, p{100 * share:.0f}", *(milliseconds(column, share) for column in taken))
        self._part_rows(
            "processor for one",
            lambda one: one.loaded.processor_milliseconds(),
            " ms",
            first=[[one.client_microseconds / 1000 for one in column] for column in floors],
            total=[
                [(one.microseconds + one.client_microseconds) / 1000 for one in column] for column in floors
            ],
        )
        self._row(
            "    servers alone",
            *(median([one.microseconds / 1000 for one in column], 2, " ms") for column in floors),
            *(
                self._cell(column, lambda one: sum(one.loaded.parts_milliseconds().values()), 2, " ms")
                for column in self._columns
            ),
        )
        echoes = [one.echo.microseconds / 1000 for one in self._rounds]
        self._row(
            "  all of it in echoes (servers)",
            "",
            "",
            *(
                median(
                    [
                        sum(each.loaded.processor_milliseconds().values()) / echo
                        for each, echo in zip(self._of(column), echoes, strict=True)
                    ]
                )
                for column in self._columns
            ),
        )
        self._done_rows(lambda one: one.done)
        self._bytes_row("databases grow by", "stored")
        self._bytes_row("log of events grows by", "streamed")
        self._bytes_row("write-ahead log", "logged")

    def _one_at_a_time(self) -> None:
        alone = [[one for each in self._rounds for one in each.echo.alone]]
        alone.append([one for each in self._rounds for one in each.hops.alone])
        alone += [[one for each in self._of(column) for one in each.reserve] for column in self._columns]
        for share in (0.5, 0.99):
            self._row(f"  answer, p{100 * share:.0f}", *(milliseconds(column, share) for column in alone))
        for what, since in (("call", 0), ("answer", 1)):
            cells = [
                milliseconds(
                    [
                        to_confirmed - since * reserve
                        for each in self._of(column)
                        for reserve, to_confirmed in zip(each.reserve, each.to_confirmed, strict=True)
                    ],
                    0.5,
                )
                for column in self._columns
            ]
            self._row(f"  from the {what} to confirmed, p50", "", "", *cells)
        self._done_rows(lambda one: one.done_alone)
        self._part_rows("processor for one", lambda one: one.alone.parts_milliseconds(), " ms")

    def _through_the_edge(self) -> None:
        rates = [[one.edge.per_second for one in self._of(column)] for column in self._columns]
        self._row("  confirmed/s", "", "", *(median(column, 0) for column in rates))
        self._row("    lowest to highest round", "", "", *map(spread, rates))
        self._mesh_row(
            "    of gRPC to the service",
            lambda one: 100 * one.edge.per_second / one.loaded.per_second,
            " %",
            0,
        )
        taken = [
            [one for each in self._of(column) for one in each.edge.load.taken] for column in self._columns
        ]
        for share in (0.5, 0.99):
            self._row(
                f"  answer, p{100 * share:.0f}", "", "", *(milliseconds(column, share) for column in taken)
            )
        self._mesh_row(
            "  processor for one", lambda one: sum(one.edge.processor_milliseconds().values()), " ms", 2
        )
        self._mesh_row(
            "    of it the edge", lambda one: one.edge.processor_milliseconds()[PARTS["edge"]], " ms", 2
        )

    def _of(self, column: str) -> list[Measured]:
        return [one.meshes[column] for one in self._rounds]

    def _cell(self, column: str, value: Cell, digits: int, unit: str) -> str:
        return median([value(one) for one in self._of(column)], digits, unit)

    def _mesh_row(self, what: str, value: Cell, unit: str = "", digits: int = 1) -> None:
        self._row(what, "", "", *(self._cell(column, value, digits, unit) for column in self._columns))

    def _done_rows(self, done: Callable[[Measured], Done]) -> None:
        self._mesh_row("  commits for one", lambda one: done(one)["commits"], digits=2)
        self._mesh_row("  AMQP messages published for one", lambda one: done(one)["published"], digits=2)
        self._mesh_row("  AMQP messages delivered for one", lambda one: done(one)["delivered"], digits=2)

    def _bytes_row(self, what: str, name: str) -> None:
        def kilobytes(one: Measured) -> float | None:
            found = one.done[name]
            return None if found is None else found / 1000

        self._mesh_row(f"  {what}, for one", kilobytes, " kB")

    def _part_rows(
        self,
        what: str,
        values: Callable[[Measured], Mapping[str, float]],
        unit: str,
        first: Sequence[Sequence[float]] = ((), ()),
        total: Sequence[Sequence[float]] = ((), ()),
        digits: int = 2,
    ) -> None:
        """The sum, if it has a name, and each part; `first` and `total` are the generator and the sum of the
        two floors."""

        def cells(value: Cell) -> list[str]:
            return [self._cell(column, value, digits, unit) for column in self._columns]

        def floors(columns: Sequence[Sequence[float]]) -> list[str]:
            return [median(column, 2, unit) if column else "" for column in columns]

        if what:
            self._row(f"  {what}", *floors(total), *cells(lambda one: sum(values(one).values())))
        for part in (*dict.fromkeys(PARTS.values()), POSTGRESQL, SUPERVISOR, GENERATOR):
            found = cells(lambda one, part=part: values(one).get(part))  # type: ignore[misc]
            if set(found) != {"-"}:
                self._row(f"    {part}", *(floors(first) if part == GENERATOR else ("", "")), *found)

    def _row(self, what: str, *cells: str) -> None:
        print(line(what, *cells))
