"""How benchmarks print what they have found."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def milliseconds(values: list[float], share: float, digits: int = 1) -> str:
    """The value below which `share` of the seconds in `values` lie; a dash if there are none."""
    if not values:
        return "-"
    ordered = sorted(values)
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000:.{digits}f} ms"


def row(what: str, *cells: str) -> None:
    print(f"{what:<42}" + "".join(f"{cell:>16}" for cell in cells))


def processor() -> str:
    """The machine in a few words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"
