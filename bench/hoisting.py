"""One step of the reference models on this CPU with tokens permuted at every site, and once for all layers.

Both run the same plan and the same weights. *permuting* is the share of a profiled step that gathers rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

import planner
from bench.protocol import publish
from planner import models
from planner.models.catalogue import load_config, scale_of
from planner.models.inputs import example_inputs
from planner.runtime.measure import interleaved
from planner.runtime.model import compiled

CASES = {
    "emoji-flux": ((128, 128), 1, "neighborhood{radius=1,edge=clamp,group=8x8}"),
    "emoji-hunyuan": ((96, 96), 8, "crisscross{axes=lines,group=2x8x8}"),
}
GATHERS = ("aten::index_select", "aten::index")


def main() -> None:
    rows = []
    for name, (size, frames, pattern) in CASES.items():
        model = models.load(name).model
        inputs = example_inputs(
            load_config(name), size, frames, device="cpu", dtype=torch.float32, scale=scale_of(name)
        )
        steps, reports = dict[str, Callable[[], Any]](), dict[str, planner.Report]()
        for kind, has_kernels in (("at every site", True), ("hoisted", False)):
            planned = planner.compile(model, pattern=pattern, min_speedup=0.0)
            with patch.object(compiled, "has_kernels", return_value=has_kernels):
                planned(**inputs)
            steps[kind], reports[kind] = partial(planned, **inputs), planner.report(planned)
        seconds = interleaved(steps, repeats=7)
        (hoisting,) = reports["hoisted"].hoistings[0]
        counts = {"at every site": hoisting.before, "hoisted": hoisting.after}
        rows += [
            {
                "model": name,
                "permuted": kind,
                "tokens": reports[kind].plans[0].decisions[-1].queries,
                "pattern": pattern,
                "permutations": counts[kind],
                "step_ms": seconds[kind] * 1e3,
                "permuting": gathering(steps[kind]),
            }
            for kind in steps
        ]
    publish("hoisting", rows)


def gathering(step: Callable[[], Any]) -> float:
    """Return the share of a step's time on the CPU that is spent on gathering rows."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(event.self_cpu_time_total for event in events if event.key in GATHERS) / total


if __name__ == "__main__":
    with torch.no_grad():
        main()
