"""One call of a full-size transformer on one GPU and on several, dense and planned, under diffusers' Ulysses.

    python -m bench.parallel flux.1-dev --size 4096x4096 --blocks 2
    python -m bench.parallel wan2.1-14b --size 1280x720x81 --blocks 2

Random bf16 weights, a few blocks of each kind; diffusers' own eager code on both sides, attention dense by torch's SDPA
or planned. Calls in turn, medians of the slowest device. The planned output of several devices is compared with that of
one: relative error, beside that of two dense runs, on one device and on several.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.utils._pytree as pytree
from diffusers import ContextParallelConfig

import planner
from bench.end_to_end import PLANS
from bench.protocol import RESULTS, publish
from planner.models.catalogue import build, load_config
from planner.models.inputs import example_inputs

GRAT_VIDEO = PLANS["hunyuanvideo"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--size", default="4096x4096")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, torch.cuda.device_count()])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        for devices in arguments.devices:
            store = Path(folder) / f"{devices}"
            mp.spawn(
                measure,
                (devices, store, arguments.model, arguments.size, arguments.blocks, arguments.steps),
                nprocs=devices,
            )
            rows += torch.load(f"{store}.rows")
        for row in rows:
            one, here = (
                torch.load(Path(folder) / f"{n}.{row['attention']}") for n in (arguments.devices[0], row["devices"])
            )
            row["error"] = float((here - one).norm() / one.norm())
            row["speedup"] = rows[0]["milliseconds"] / row["milliseconds"]
    publish(
        f"parallel-{arguments.model}",
        rows,
        arguments.output,
        size=arguments.size,
        blocks=arguments.blocks,
        steps=arguments.steps,
    )


def measure(rank: int, devices: int, store: Path, name: str, size: str, blocks: int, steps: int) -> None:
    """Time the calls of one device, in a process of its own."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=rank, world_size=devices)
    torch.manual_seed(0)
    config = load_config(name)
    config |= {kind: blocks for kind in ("num_layers", "num_single_layers") if kind in config}
    model = build(config, device="cuda", dtype=torch.bfloat16)
    width, height, *frames = map(int, size.split("x"))
    inputs = example_inputs(config, (width, height), *frames, device="cuda")
    inputs = pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, inputs) | {"return_dict": False}
    for tensor in pytree.tree_leaves(inputs):
        if isinstance(tensor, torch.Tensor):
            dist.broadcast(tensor, 0)
    if devices > 1:
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=devices))
    runs: dict[str, Any] = {"dense": model}
    for attention, options in PLANS.get(name, GRAT_VIDEO).items():
        if attention != "auto":
            runs[attention] = planner.compile(model, **options)
    with torch.no_grad():
        times: dict[str, list[float]] = {run: [] for run in runs}
        for run, each in runs.items():
            output = each(**inputs)[0]
            if rank == 0:
                torch.save(output.float().cpu(), f"{store}.{run}")
        for _ in range(steps):
            for run, each in runs.items():
                dist.barrier()
                torch.cuda.synchronize()
                start = time.perf_counter()
                each(**inputs)
                torch.cuda.synchronize()
                slowest = torch.tensor(time.perf_counter() - start, device="cuda")
                dist.all_reduce(slowest, dist.ReduceOp.MAX)
                times[run].append(float(slowest))
    if rank == 0:
        rows = [
            {"devices": devices, "attention": run, "milliseconds": 1e3 * statistics.median(seconds)}
            for run, seconds in times.items()
        ]
        torch.save(rows, f"{store}.rows")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
