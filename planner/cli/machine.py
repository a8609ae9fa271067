"""The share of this machine's CPU that other processes have during a measurement."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.15
"""The share of all cores in other processes from which on times are not compared."""

_STATISTICS = Path("/proc/stat")
_IDLE = (3, 4)
"""Columns of idle and waiting time in the first line of /proc/stat."""


@dataclass(frozen=True)
class Usage:
    """CPU seconds used so far by all processes and by this one, and the time of the reading in seconds."""

    everyone: float
    ours: float
    wall: float

    @staticmethod
    def now() -> Usage | None:
        """Read the usage until now; None where the system has no /proc/stat (outside of Linux)."""
        try:
            ticks = [int(word) for word in _STATISTICS.read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        used = sum(count for column, count in enumerate(ticks) if column not in _IDLE)
        return Usage(used / os.sysconf("SC_CLK_TCK"), time.process_time(), time.monotonic())


def others_share(before: Usage | None, after: Usage | None) -> float:
    """Return the share of all cores that other processes had between two moments, 0 where it is not known."""
    if before is None or after is None or after.wall <= before.wall:
        return 0.0
    others = (after.everyone - before.everyone) - (after.ours - before.ours)
    share = others / ((after.wall - before.wall) * (os.cpu_count() or 1))
    return min(1.0, max(0.0, share))  # ticks are coarse
