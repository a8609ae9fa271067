"""Measuring: medians of runs taken in turn, and the seconds of each stage of one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")
Run = Callable[[], Any]


def host_seconds(run: Run) -> float:
    """Return the seconds that a run takes on the host."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def device_seconds(run: Run, times: int = 3) -> float:
    """Return the seconds that a run takes on the current CUDA device, the mean of ``times`` in a row."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / times


def interleaved(
    runs: Mapping[Name, Run], repeats: int, seconds: Callable[[Run], float] = host_seconds
) -> dict[Name, float]:
    """Return the median seconds of each run, measured in turn after one warm-up each, so that drift hits all alike."""
    samples: dict[Name, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            samples[name].append(seconds(run))
    return {name: statistics.median(times) for name, times in samples.items()}


class Stopwatch:
    """The seconds of each stage of one run; a stage may come more than once."""

    def __init__(self) -> None:
        self.seconds = dict[str, float]()
        self._last: float | None = None

    def start(self) -> None:
        """Begin the first stage."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage, and begin the next; do nothing before start and after stop."""
        if self._last is not None:
            now = time.perf_counter()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
            self._last = now

    def stop(self) -> None:
        """Stop counting."""
        self._last = None

    def move(self, stage: str, to: str, seconds: float) -> None:
        """Move some of a stage's seconds to another."""
        if seconds:
            self.seconds[stage] = self.seconds.get(stage, 0.0) - seconds
            self.seconds[to] = self.seconds.get(to, 0.0) + seconds
