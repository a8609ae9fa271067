"""Dense against planned on one call: time, peak memory, and how much the output changes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from planner.runtime.measure import device_seconds, host_seconds

Run = Callable[[], Any]


@dataclass(frozen=True)
class Measurement:
    """A call dense and planned.

    dense_seconds, planned_seconds: medians. dense_bytes, planned_bytes: the peak of memory allocated on the CUDA
    device, None on a CPU. difference: the norm of the change of all floating outputs over the norm of the dense ones.
    """

    dense_seconds: float
    planned_seconds: float
    dense_bytes: int | None
    planned_bytes: int | None
    difference: float

    @property
    def speedup(self) -> float:
        """Dense over planned time."""
        return self.dense_seconds / self.planned_seconds

    def __str__(self) -> str:
        times = f"dense {self.dense_seconds * 1e3:.1f} ms, planned {self.planned_seconds * 1e3:.1f} ms"
        peaks = ""
        if self.dense_bytes is not None and self.planned_bytes is not None:
            peaks = f"; peak {self.dense_bytes / 2**30:.2f} GiB, planned {self.planned_bytes / 2**30:.2f} GiB"
        return f"{times}, {self.speedup:.2f}x{peaks}; outputs differ by {self.difference:.3g} of their norm"


def compare_runs(dense: Run, planned: Run, rounds: int) -> Measurement:
    """Run both once, compare what they return, then time them in turn so many times; on CUDA by its own clock."""
    ours, theirs = planned(), dense()
    is_cuda = any(isinstance(leaf, torch.Tensor) and leaf.is_cuda for leaf in pytree.tree_leaves(theirs))
    difference = relative_difference(ours, theirs)
    del ours, theirs
    seconds: dict[str, list[float]] = {"dense": [], "planned": []}
    peaks: dict[str, int | None] = {"dense": None, "planned": None}
    for _ in range(rounds):
        for name, run in (("dense", dense), ("planned", planned)):
            if is_cuda:
                torch.cuda.reset_peak_memory_stats()
            seconds[name].append(device_seconds(run, 1) if is_cuda else host_seconds(run))
            peaks[name] = torch.cuda.max_memory_allocated() if is_cuda else None
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Measurement(medians["dense"], medians["planned"], peaks["dense"], peaks["planned"], difference)


def relative_difference(ours: Any, theirs: Any) -> float:
    """Return the norm of the difference of two results, of all floating tensors in them, over that of the second."""
    pairs = zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True)
    floating = [(a.double(), b.double()) for a, b in pairs if isinstance(b, torch.Tensor) and b.is_floating_point()]
    change = sum(float((a - b).square().sum()) for a, b in floating)
    size = sum(float(b.square().sum()) for _, b in floating)
    return (change / size) ** 0.5 if size else 0.0
