"""One step of a whole full-size transformer with random bf16 weights on a GPU: dense against planned.

    python -m bench.end_to_end flux.1-dev --sizes 1024x1024 4096x4096
    python -m bench.end_to_end hunyuanvideo --sizes 1280x720x129
    python -m bench.end_to_end flux.1-dev --sizes 1024x1024 --startup      the first call, twice: cold caches, warm ones
    python -m bench.end_to_end flux.1-dev --sizes 4096x4096 --blocks 1 --pause 1      at the full clock

Dense is diffusers' model with its repeated blocks under torch.compile; planned is ``planner.compile(model,
backend="inductor")``. Dense attention runs by cuDNN on both sides. Same weights, same inputs; steps in turn, medians.
Profiled steps give the time of attention kernels. Amdahl's bound is the dense step with its attention divided by the
ratio of the FLOPs, dense over planned. A step of over 10 s is run once after its compilation. A model cut to a few
blocks of each kind, with a pause before every step, does not meet the chip's power limit: there equal work takes equal
time.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.nn.attention import SDPBackend, sdpa_kernel

import planner
from bench.protocol import RESULTS, publish
from planner.models.catalogue import build, load_config
from planner.models.inputs import example_inputs
from planner.plan.plan import Plan

PLANS: dict[str, dict[str, dict[str, Any]]] = {
    "flux.1-dev": {
        "GRAT-B": {"pattern": "neighborhood{radius=1,edge=clamp}", "group": "16x16", "min_speedup": 0.0},
        "GRAT-X": {"pattern": "crisscross", "group": "16x16", "min_speedup": 0.0},
        "auto": {},
    },
    "hunyuanvideo": {
        "GRAT-B": {"pattern": "neighborhood{radius=1,edge=clamp}", "group": "4x8x8", "min_speedup": 0.0},
        "GRAT-X": {"pattern": "crisscross{axes=planes}", "group": "4x8x8", "min_speedup": 0.0},
        "auto": {},
    },
}
"""Options of planner.compile."""

KINDS = {
    "pointwise": ("triton_",),
    "attention": ("sdpa", "fmha", "flash", "attention", "cudnn"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitk"),
    "moves": ("copy", "memcpy", "cat", "index", "gather", "memset"),
}
"""What kernels do, by parts of their names; the first that fits counts. Ours are called attention."""

SLOW = 10
"""Seconds; steps that take longer are run once, profiled."""

Step = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=PLANS)
    parser.add_argument("--sizes", nargs="+", default=["1024x1024"])
    parser.add_argument("--plans", nargs="+")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--startup", action="store_true")
    parser.add_argument("--blocks", type=int, help="keep so many blocks of each kind")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of rest before each measured step")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    config = load_config(arguments.model)
    start = time.perf_counter()
    model = build(config, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    print(f"built in {time.perf_counter() - start:.0f} s", flush=True)
    options_by_name = {name: PLANS[arguments.model][name] for name in arguments.plans or PLANS[arguments.model]}
    rows, name = list[dict[str, Any]](), arguments.model
    if arguments.blocks is not None:
        cut(model, arguments.blocks)
        name += f"-{arguments.blocks}-blocks"
    for size in arguments.sizes:
        width, height, *frames = map(int, size.split("x"))
        inputs = example_inputs(config, (width, height), *frames, device="cuda")
        inputs = pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, inputs) | {"return_dict": False}
        if arguments.startup:
            rows += startup(model, inputs, size, options_by_name)
        else:
            rows += compare(model, inputs, size, options_by_name, arguments.steps, arguments.pause)
            publish(f"end_to_end-{name}", rows, arguments.output, steps=arguments.steps, pause=arguments.pause)
    if arguments.startup:
        publish(f"startup-{name}", rows, arguments.output)


def compare(
    model: torch.nn.Module, inputs: dict[str, Any], size: str, options_by_name: dict[str, Any], steps: int, pause: float
) -> list[dict[str, Any]]:
    """Time each way to run a step, dense first: a row each."""

    def dense() -> None:
        with dense_blocks(model):
            model(**inputs)

    with shallow(model):
        dense()
    runs, first, plans = dict[str, Step](), dict[str, float](), dict[str, Plan]()
    # Blocks are compiled by now; a slow model's one dense step is this one.
    opening = once(dense, profile=True)
    runs["dense"], first["dense"], slow = dense, opening.seconds, opening.seconds > SLOW
    compiled, same = dict[str, torch.nn.Module](), dict[str, str]()
    for name, options in options_by_name.items():
        plan = planner.make_plan(model, kwargs=inputs, **options)
        twin = next((other for other, known in plans.items() if patterns(known) == patterns(plan)), None)
        if twin is not None:
            same[name] = twin
            continue
        compiled[name] = planner.compile(model, plan=plan, backend="inductor")
        runs[name] = lambda twin=compiled[name]: twin(**inputs)
        first[name] = once(runs[name]).seconds
        plans[name] = plan
    timed = {name: list[Once]() for name in runs}
    profiled = {name: list[Once]() for name in runs}
    for _ in range(0 if slow else steps):
        for name, step in runs.items():
            timed[name].append(once(step, pause=pause))
    for _ in range(1 if slow else 3):
        for name, step in runs.items():
            profiled[name].append(opening if slow and name == "dense" else once(step, True, pause))
    timed = timed if not slow else profiled
    kinds = {name: median_kinds(measured) for name, measured in profiled.items()}
    rows = list[dict[str, Any]]()
    for name in runs:
        plan = plans.get(name)
        seconds = {each: statistics.median(one.seconds for one in timed[each]) for each in ("dense", name)}
        attention = {each: kinds[each]["attention"] for each in ("dense", name)}
        rest = {each: sum(kinds[each].values()) - attention[each] for each in ("dense", name)}
        ratio = plan.bound if plan is not None else 1.0
        bound = sum(kinds["dense"].values()) / (rest["dense"] + attention["dense"] / ratio)
        sparse = [decision for decision in plan.decisions if decision.is_sparse] if plan is not None else []
        rows.append(
            {
                "size": size,
                "run": name,
                "pattern": ", ".join(sorted({decision.pattern for decision in sparse})) or "dense",
                "sparse_sites": len(sparse),
                "step_ms": seconds[name] * 1e3,
                "predicted_ms": predicted(plan, next(iter(plans.values()))) * 1e3,
                "speedup": seconds["dense"] / seconds[name],
                "bound": bound,
                "of_bound": seconds["dense"] / seconds[name] / bound,
                "attention_ms": attention[name] * 1e3,
                "rest_ms": rest[name] * 1e3,
                "rest_of_dense": rest[name] / rest["dense"],
                "peak_GiB": max(one.memory for one in timed[name]) / 2**30,
                "first_call_s": first[name],
                "kinds_ms": {kind: round(value * 1e3, 2) for kind, value in kinds[name].items()},
                "kernels_ms": profiled[name][-1].kernels,
                "startup_s": dict(planner.report(compiled[name]).startup[0]) if name in compiled else {},
            }
        )
    return rows + [next(row for row in rows if row["run"] == twin) | {"run": name} for name, twin in same.items()]


def predicted(plan: Plan | None, any_plan: Plan) -> float:
    """Predict the seconds of a planned step, or of a dense one of the same model and inputs."""
    return (
        any_plan.dense_attention_seconds + any_plan.other_seconds
        if plan is None
        else (plan.attention_seconds + plan.other_seconds)
    )


def patterns(plan: Plan) -> list[str]:
    return [decision.pattern for decision in plan.decisions]


@dataclass(frozen=True)
class Once:
    """One step: its seconds on the device, its peak memory in bytes, seconds by kind of kernel, the largest kernels."""

    seconds: float
    memory: int
    kinds: Mapping[str, float]
    kernels: Mapping[str, float]


def once(step: Step, profile: bool = False, pause: float = 0.0) -> Once:
    torch.cuda.reset_peak_memory_stats()
    time.sleep(pause)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) if profile else contextlib.nullcontext() as profiler:
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
    kinds, names = defaultdict[str, float](float), defaultdict[str, float](float)
    for event in profiler.key_averages() if profiler is not None else ():
        kinds[kind_of(event.key)] += event.self_device_time_total / 1e6
        names[event.key] += event.self_device_time_total / 1e3
    kernels = {
        name[:100]: round(milliseconds, 2)
        for name, milliseconds in sorted(names.items(), key=lambda item: -item[1])[:12]
    }
    return Once(start.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated(), kinds, kernels)


def median_kinds(measured: list[Once]) -> Mapping[str, float]:
    kinds = {kind for one in measured for kind in one.kinds}
    return {kind: statistics.median(one.kinds.get(kind, 0.0) for one in measured) for kind in kinds}


def cut(model: torch.nn.Module, blocks: int) -> dict[str, torch.nn.ModuleList]:
    """Keep the first blocks of each kind; returns all that there were, by the name of their list."""
    lists = {name: child for name, child in model.named_children() if isinstance(child, torch.nn.ModuleList)}
    for name, whole in lists.items():
        setattr(model, name, torch.nn.ModuleList(list(whole)[:blocks]))
    return lists


@contextlib.contextmanager
def shallow(model: torch.nn.Module) -> Iterator[None]:
    """Cut the model to two blocks of each kind while open: enough to compile them."""
    lists = cut(model, 2)
    try:
        yield
    finally:
        for name, blocks in lists.items():
            setattr(model, name, blocks)


@contextlib.contextmanager
def dense_blocks(model: Any) -> Iterator[None]:
    """Run the model's repeated blocks compiled by torch.compile while open."""
    blocks = [module for module in model.modules() if type(module).__name__ in model._repeated_blocks]
    for block in blocks:
        if not hasattr(block, "_planner_bench_compiled"):
            block.compile(fullgraph=True, dynamic=False)
            block._planner_bench_compiled = block._compiled_call_impl
        block._compiled_call_impl = block._planner_bench_compiled
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def kind_of(kernel: str) -> str:
    """Classify a kernel by its name."""
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def startup(
    model: torch.nn.Module, inputs: dict[str, Any], size: str, options_by_name: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Time planner.compile with its first step, and a second call, for each set of options."""
    for name, options in options_by_name.items():
        start = time.perf_counter()
        compiled = planner.compile(model, backend="inductor", **options)
        compiled(**inputs)
        torch.cuda.synchronize()
        first = time.perf_counter() - start
        start = time.perf_counter()
        compiled(**inputs)
        torch.cuda.synchronize()
        again = time.perf_counter() - start
        yield {"size": size, "run": name, "first_s": first, "again_s": again, **planner.report(compiled).startup[0]}
        torch._dynamo.reset()


if __name__ == "__main__":
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with torch.no_grad(), sdpa_kernel(backends, set_priority=True):
        main()
