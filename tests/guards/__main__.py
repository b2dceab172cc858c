"""`python -m tests.guards`: every mechanism off once, and the test that went red (`make guards`).

`NAME ...` runs these only, `--quick` those that need no broker and no process, `--list` lists them, `--table`
prints what stands in docs/PROMISES.md, `--write` puts it there. Ends with 1 unless each is RED.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.guards.catalogue import GUARDS
from tests.guards.guard import Guard
from tests.guards.run import Finding, Verdict, judge
from tests.guards.table import table
from tests.support.process import ROOT

PAGE = ROOT / "docs" / "PROMISES.md"


def main() -> int:
    options = _options()
    guards = [guard for guard in GUARDS.values() if not options.names or guard.name in options.names]
    if options.quick:
        guards = [guard for guard in guards if guard.quick]
    if options.write:
        introduction = PAGE.read_text().partition("## 1.")[0]
        PAGE.write_text(introduction + table())
        return 0
    if options.table:
        print(table())
        return 0
    if options.list:
        for guard in guards:
            promises = ", ".join(map(str, guard.promises))
            print(f"{guard.name:34} promise {promises:8} {guard.mechanism}")
        return 0
    return _run(guards, options.jobs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description="Switch mechanisms off.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these guards only")
    parser.add_argument("--quick", action="store_true", help="without those that need a broker or a process")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--table", action="store_true", help="the table of docs/PROMISES.md")
    parser.add_argument("--write", action="store_true", help="make docs/PROMISES.md anew")
    parser.add_argument("--jobs", type=int, default=2, help="how many runs at a time")
    options = parser.parse_args()
    if unknown := set(options.names) - set(GUARDS):
        parser.error(f"no such guard: {', '.join(sorted(unknown))}; --list names those there are")
    return options


def _run(guards: list[Guard], jobs: int) -> int:
    started = time.monotonic()
    verdicts: Counter[Verdict] = Counter()
    for finding in judge(guards, jobs):
        verdicts[finding.verdict] += 1
        _tell(finding)
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in Verdict)
    print(f"{len(guards)} guards: {counts}; {time.monotonic() - started:.0f} s")
    return 0 if verdicts[Verdict.RED] == len(guards) else 1


def _tell(finding: Finding) -> None:
    guard = finding.guard
    print(f"{finding.verdict:5} {guard.name} (promise {', '.join(map(str, guard.promises))})")
    if finding.verdict is Verdict.RED:
        for witness, said in zip(guard.red, finding.says, strict=True):
            print(f"      {witness.test}\n        {said[:300]}")
    else:
        for line in finding.says:
            print(f"      {line}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
