"""One step of the full-size FLUX.1-dev with random bf16 weights on a CUDA device: dense against planned.

Until kernels are emitted, planned attention on a GPU is grouped SDPA: torch's own attention, a few groups a launch.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import planner
from bench.protocol import publish
from models.catalogue import build, load_config
from models.inputs import example_inputs

SIZES = (1024, 2048, 4096)
ASKED = {
    "dense": {"pattern": "dense"},
    "crisscross": {"pattern": "crisscross", "group": "16x16", "target": "h100"},
    "neighborhood": {"pattern": "neighborhood", "group": "16x16", "target": "h100"},
    "auto": {},
}
"""Options of planner.compile. Target h100 makes it take the pattern, auto lets it see that torch's own kernels run."""


def main() -> None:
    config = load_config("flux.1-dev")
    model = build(config, device="cuda", dtype=torch.bfloat16)
    rows = []
    for size in SIZES:
        inputs = example_inputs(config, (size, size), device="cuda")
        inputs = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, inputs)
        dense = seconds(lambda inputs=inputs: model(**inputs))
        for asked, options in ASKED.items():
            compiled = planner.compile(model, **options)
            start = time.perf_counter()
            compiled(**inputs)
            torch.cuda.synchronize()
            first = time.perf_counter() - start
            planned = seconds(lambda inputs=inputs, compiled=compiled: compiled(**inputs))
            (plan,) = planner.report(compiled).plans
            rows.append(
                {
                    "size": f"{size}x{size}",
                    "asked": asked,
                    "pattern": plan.decisions[0].pattern,
                    "sparse_sites": sum(decision.is_sparse for decision in plan.decisions),
                    "dense_ms": dense * 1e3,
                    "planned_ms": planned * 1e3,
                    "speedup": dense / planned,
                    "predicted": plan.step_speedup,
                    "predicted_dense_ms": (plan.dense_attention_seconds + plan.other_seconds) * 1e3,
                    "first_call_s": first,
                }
            )
            torch._dynamo.reset()
    publish("flux_step", rows)


def seconds(run: Any, repeats: int = 5) -> float:
    """Median of device times after a warm-up."""
    run()
    taken = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return sorted(taken)[repeats // 2]


if __name__ == "__main__":
    with torch.inference_mode():
        main()
