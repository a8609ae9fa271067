"""What recording evidence takes on a full-size transformer with random weights: time against sampling, and memory.

    python -m bench.recording flux.1-dev --size 1024x1024
    python -m bench.recording flux.1-dev --size 4096x4096 --steps 2 --scores-only      memory; not the probes

Sampling is a loop of the model's own calls at falling noise levels, dense, by diffusers' eager code. Recording is
planner.record, told how many calls there will be, around the same loop; twice with --again. The model is called once
before, so that libraries have chosen their kernels. Memory is the most that PyTorch has held.
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


class _BrokenOff(Exception):
    """The sampler stopped: the calls made so far are recorded, and no site is probed."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--scores-only", action="store_true", help="break off before sites are probed")
    parser.add_argument("--again", action="store_true", help="record twice")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    config = load_config(given.model)
    model = build(config, device="cuda", dtype=torch.bfloat16)
    width, height, *frames = map(int, given.size.split("x"))
    inputs = example_inputs(config, (width, height), *frames, device="cuda")
    inputs = pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, inputs) | {"return_dict": False}

    def sample(twin: torch.nn.Module, breaks: bool = False) -> None:
        for step in range(given.steps):
            level = torch.full_like(inputs["timestep"], 1 - step / given.steps)
            with torch.no_grad():
                twin(**inputs | {"timestep": level})
        if breaks:
            raise _BrokenOff

    def record() -> None:
        with contextlib.suppress(_BrokenOff):
            watched = partial(sample, breaks=given.scores_only)
            planner.record(model, watched, path=path, sampler_calls=given.steps)

    with torch.no_grad():
        model(**inputs)
    row = {"model": given.model, "size": given.size, "steps": given.steps, "scores_only": given.scores_only}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evidence.safetensors"
        runs = [("sampling", lambda: sample(model)), ("recording", record), *[("again", record)] * given.again]
        for name, run in runs:
            path.unlink(missing_ok=True)
            seconds, peak = measured(run)
            row |= {f"{name}_s": seconds, f"{name}_GiB": peak / 2**30}
        evidence = Evidence.load(path)
        row |= {"runs": row["recording_s"] / row["sampling_s"], "MiB_on_disk": path.stat().st_size / 2**20}
    scored, probed = (
        sum(int((~found.isnan()).sum()) for found in tables)
        for tables in (
            [site.power[:, 0] for site in evidence.sites.values()],
            [site.sensitivity for site in evidence.sites.values()],
        )
    )
    candidates = max(len(site.candidates) for site in evidence.sites.values())
    row |= {"sites": len(evidence.sites), "candidates": candidates, "sites_scored": scored, "sites_probed": probed}
    publish(f"recording-{given.model}-{given.size}-{given.steps}", [row], given.output)


def measured(run: Callable[[], Any]) -> tuple[float, int]:
    """(seconds, peak bytes on the device)"""
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
