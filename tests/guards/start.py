"""`python -m tests.guards.start <module> [argument ...]`: like `python -m <module>`, without the mechanism
that GUARD_OFF in the environment names. For tests only; the product has no such switch."""

from __future__ import annotations

import os
import runpy
import sys

from tests.guards.catalogue import GUARDS
from tests.guards.switch import VARIABLE, switch_off


def main() -> None:
    name = os.environ.get(VARIABLE, "")
    if name:
        switch_off(GUARDS[name])
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
