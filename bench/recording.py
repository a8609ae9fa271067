"""Recording evidence of a full-size transformer with random weights: time against sampling, and memory.

    python -m bench.recording flux.1-dev --size 1024x1024
    python -m bench.recording flux.1-dev --size 4096x4096 --steps 2 --scores-only      memory; not the probes

Sampling is a loop of the model's own calls at falling noise levels, dense, by diffusers' eager code. Recording is
planner.record around the same loop, with the number of calls as sampler_calls; twice with --again. The model is called
once before, so that libraries have chosen their kernels. Memory is the peak of what PyTorch allocates.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree

import planner
from bench.protocol import RESULTS, publish
from planner.models.catalogue import build, load_config
from planner.models.inputs import example_inputs
from planner.plan.evidence import Evidence


class _Interrupted(Exception):
    """The sampler stopped: its calls are recorded, and no site is probed."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--scores-only", action="store_true", help="stop before sites are probed")
    parser.add_argument("--again", action="store_true", help="record twice")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = load_config(options.model)
    model = build(config, device="cuda", dtype=torch.bfloat16)
    width, height, *frames = map(int, options.size.split("x"))
    inputs = example_inputs(config, (width, height), *frames, device="cuda")
    inputs = pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, inputs) | {"return_dict": False}

    def sample(twin: torch.nn.Module, interrupted: bool = False) -> None:
        for step in range(options.steps):
            level = torch.full_like(inputs["timestep"], 1 - step / options.steps)
            with torch.no_grad():
                twin(**inputs | {"timestep": level})
        if interrupted:
            raise _Interrupted

    def record() -> None:
        with contextlib.suppress(_Interrupted):
            watched = partial(sample, interrupted=options.scores_only)
            planner.record(model, watched, path=path, sampler_calls=options.steps)

    with torch.no_grad():
        model(**inputs)
    row = {"model": options.model, "size": options.size, "steps": options.steps, "scores_only": options.scores_only}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evidence.safetensors"
        runs = [("sampling", lambda: sample(model)), ("recording", record), *[("again", record)] * options.again]
        for name, run in runs:
            path.unlink(missing_ok=True)
            seconds, peak = measured(run)
            row |= {f"{name}_s": seconds, f"{name}_GiB": peak / 2**30}
        evidence = Evidence.load(path)
        row |= {"runs": row["recording_s"] / row["sampling_s"], "MiB_on_disk": path.stat().st_size / 2**20}
    scored, probed = (
        sum(int((~table.isnan()).sum()) for table in tables)
        for tables in (
            [site.power[:, 0] for site in evidence.sites.values()],
            [site.sensitivity for site in evidence.sites.values()],
        )
    )
    candidates = max(len(site.candidates) for site in evidence.sites.values())
    row |= {"sites": len(evidence.sites), "candidates": candidates, "sites_scored": scored, "sites_probed": probed}
    publish(f"recording-{options.model}-{options.size}-{options.steps}", [row], options.output)


def measured(run: Callable[[], Any]) -> tuple[float, int]:
    """Return the seconds of a run, and the peak bytes on the device."""
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
