"""Measuring: run things in turn and take medians; tell the stages of one run apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each run, taken in turn after one warm-up each, so that drift hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


class Laps:
    """Seconds by stage of something that goes from stage to stage, each of which may come again."""

    def __init__(self) -> None:
        self.seconds = dict[str, float]()
        self._last: float | None = None

    def start(self) -> None:
        """Begin the first stage."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage; does nothing before start and after stop."""
        if self._last is not None:
            now = time.perf_counter()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
            self._last = now

    def stop(self) -> None:
        """Count nothing more."""
        self._last = None

    def move(self, stage: str, to: str, seconds: float) -> None:
        """Count some of a stage's seconds to another."""
        if seconds:
            self.seconds[stage] = self.seconds.get(stage, 0.0) - seconds
            self.seconds[to] = self.seconds.get(to, 0.0) + seconds
