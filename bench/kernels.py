"""Emitted kernels against the best that others offer, on one GPU, in one run.

    python -m bench.kernels                       every shape and peer that is installed
    python -m bench.kernels --only flux2048 --rounds 5
    python -m bench.kernels --only 8x8- --configs "triton{m=64,n=64,warps=4,stages=3}"      ours in other configs too

Peers: cuDNN's dense attention, FlexAttention with a prebuilt block mask, FlashAttention 4 with block-sparse lists
(`flash-attn-4`), and the dense pattern in our own kernel. Ours reads the model's own order, heads beside channels, and
counts its launch. FlexAttention and FlashAttention 4 get tokens in grouped order, not timed, and grids rounded up
to whole groups: padded tokens are computed as if they were real, which only makes them faster than a right answer.
Rates count the pairs that the pattern attends to. Hot: all peers in random order, each for 0.5 s after 0.5 s of itself.
Cool: up to 10 launches of 50 ms in all after 0.4 s of rest and, of runs below 5 ms, up to three that are not timed.
Random data.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.protocol import RESULTS, publish
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.problem import Problem, make_problem
from planner.patterns.base import Pattern
from planner.patterns.density import attended_pairs
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.plan.target import TARGETS
from planner.runtime.cuda.launch import Kernel
from planner.runtime.kernels.cache import build
from planner.runtime.kernels.select import attention, kernel_for
from planner.runtime.measure import device_seconds

HOT_MILLISECONDS = 500
"""How long a run is kept going before it is timed, and while it is.

The power limit sets a clock within 100 ms, but swings about it for longer: rates of 20 ms differ by a tenth.
"""

COOL_MILLISECONDS = 50
"""How long a run after a rest is at most, but for a single launch."""

Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    name: str
    layout: str
    pattern: str
    heads: int = 24
    head_dim: int = 128

    @property
    def tokens(self) -> int:
        return TokenLayout.parse(self.layout).tokens

    @property
    def problem(self) -> Problem:
        """What it asks of a kernel on an H100."""
        return make_problem(
            self.layout, self.pattern, TARGETS["h100"], heads=self.heads, head_dim=self.head_dim, dtype="bfloat16"
        )

    def flops(self, dense: bool = False) -> int:
        pattern, layout = parse_pattern("dense" if dense else self.pattern), TokenLayout.parse(self.layout)
        return 4 * self.heads * self.head_dim * attended_pairs(pattern, layout)


def cases(only: str = "") -> list[Case]:
    """List the cases whose names contain one of the parts in ``only``, which are separated by commas."""
    every = list[Case]()
    for group, pixels in itertools.product(("16x16", "8x8"), (1024, 2048, 4096, 8192)):
        layout = f"text:512 | h:{pixels // 16} w:{pixels // 16}"
        every.append(Case(f"flux{pixels}-{group}-X", layout, f"crisscross{{axes=lines,group={group}}}"))
        every.append(Case(f"flux{pixels}-{group}-B", layout, f"neighborhood{{radius=1,edge=clamp,group={group}}}"))
    every += [
        Case("flux2048-16x16-X-64", "text:512 | h:128 w:128", "crisscross{axes=lines,group=16x16}", head_dim=64),
        Case("flux2048-16x16-B-64", "text:512 | h:128 w:128", "neighborhood{radius=1,group=16x16}", head_dim=64),
    ]
    videos = [
        ("hunyuan33", "t:33 h:45 w:80 | text:256", 24),
        ("hunyuan30", "t:30 h:48 w:80 | text:256", 24),
        ("wan21", "t:21 h:45 w:80", 40),
    ]
    for name, layout, heads in videos:
        every.append(Case(f"{name}-B", layout, "neighborhood{radius=1,edge=clamp,group=4x8x8}", heads))
        every.append(Case(f"{name}-lines", layout, "crisscross{axes=lines,group=4x8x8}", heads))
        every.append(Case(f"{name}-planes", layout, "crisscross{axes=planes,group=4x8x8}", heads))
        every.append(Case(f"{name}-2x4x8-B", layout, "neighborhood{radius=1,edge=clamp,group=2x4x8}", heads))
        every.append(Case(f"{name}-2x4x8-lines", layout, "crisscross{axes=lines,group=2x4x8}", heads))
    every += [
        Case("flux2048-16x16-X-shifted", "text:512 | h:128 w:128", "crisscross{axes=lines,group=16x16,offset=8x8}"),
        Case("flux2048-16x16-B-shifted", "text:512 | h:128 w:128", "neighborhood{radius=1,group=16x16,offset=8x8}"),
        Case("hunyuan30-B-shifted", videos[1][1], "neighborhood{radius=1,group=4x8x8,offset=2x4x4}"),
    ]
    chosen = (case for case in every if any(part in case.name for part in only.split(",")))
    return sorted(chosen, key=lambda case: "8x8-" in case.name)


def heads_last(case: Case, tokens: int) -> tuple[torch.Tensor, ...]:
    shape = (1, tokens, case.heads, case.head_dim)
    return tuple(torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))


def ours(case: Case) -> Run:
    q, k, v = heads_last(case, case.tokens)
    return lambda: attention(q, k, v, case.layout, case.pattern)


def ours_as(case: Case, config: KernelConfig) -> Run:
    q, k, v = heads_last(case, case.tokens)
    problem = kernel_for(q, k, v, case.layout, case.pattern).emitted.spec.problem
    kernel_file = build(make_spec(problem, config))
    kernel, out = Kernel(kernel_file.emitted, kernel_file.binary, q.device), torch.empty_like(q)
    return lambda: kernel(q, k, v, out, case.head_dim**-0.5)


def ours_dense(case: Case) -> Run:
    q, k, v = heads_last(case, case.tokens)
    return lambda: attention(q, k, v, f"n:{case.tokens}", "dense")


def cudnn(case: Case) -> Run:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (x.contiguous() for x in heads_last(case, case.tokens))

    def run() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)

    return run


@dataclass(frozen=True)
class Blocks:
    """The pattern in blocks of one size, tokens in group order, global tokens first: (rows, columns) to attend."""

    size: int
    tokens: int
    count: torch.Tensor
    index: torch.Tensor


def blocks_of(case: Case) -> Blocks:
    layout, pattern = TokenLayout.parse(case.layout), parse_pattern(case.pattern)
    counts = pattern.grid(layout.grid.sizes).counts
    per_group = math.prod(pattern.group)
    size = min(128, per_group)
    groups, parts, front = math.prod(counts), per_group // size, -(-layout.global_tokens // size)
    total = front + groups * parts
    count = torch.full((total,), total, dtype=torch.int32, device="cuda")
    index = torch.arange(total, dtype=torch.int32, device="cuda").repeat(total, 1)
    for first in range(0, groups, 512):
        rows = torch.arange(first, min(first + 512, groups), device="cuda")
        reads = _reads(pattern, rows, counts).repeat_interleave(parts, 0).repeat_interleave(parts, 1)
        reads = torch.cat([reads.new_ones(len(reads), front), reads], 1)
        at = slice(front + first * parts, front + first * parts + len(reads))
        count[at] = reads.sum(1)
        index[at] = reads.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return Blocks(size, total * size, count, index)


def _reads(pattern: Pattern, rows: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    every = torch.arange(math.prod(counts), device="cuda")
    query = [x[:, None] for x in torch.unravel_index(rows, counts)]
    return pattern.attends(query, [x[None, :] for x in torch.unravel_index(every, counts)], counts)


def flex(case: Case) -> Run:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    blocks = blocks_of(case)
    none = torch.zeros_like(blocks.count)
    mask = BlockMask.from_kv_blocks(
        none[None, None],
        blocks.index[None, None],
        blocks.count[None, None],
        blocks.index[None, None],
        BLOCK_SIZE=blocks.size,
        compute_q_blocks=False,
    )
    q, k, v = (x.contiguous() for x in heads_last(case, blocks.tokens))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask)


def fa4(case: Case) -> Run:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import flash_attn_func

    blocks = blocks_of(case)
    none = torch.zeros_like(blocks.count)
    lists = BlockSparseTensorsTorch(
        mask_block_cnt=none[None, None],
        mask_block_idx=blocks.index[None, None],
        full_block_cnt=blocks.count[None, None],
        full_block_idx=blocks.index[None, None],
        block_size=(blocks.size, blocks.size),
    )
    q, k, v = (x.transpose(1, 2) for x in heads_last(case, blocks.tokens))
    return lambda: flash_attn_func(q, k, v, block_sparse_tensors=lists)


PEERS: dict[str, Callable[[Case], Run]] = {"cudnn": cudnn, "fa4": fa4, "flex": flex, "ours dense": ours_dense}
DENSE = ("cudnn", "ours dense")
COOL = ("ours", "cudnn", "fa4")


def milliseconds(run: Run, launches: int) -> float:
    return device_seconds(run, launches) * 1e3


def measure(
    case: Case, runs: dict[str, Run], rounds: int, cool: Collection[str], cool_rounds: int = 3
) -> dict[str, Any]:
    """Measure median milliseconds of each run, hot and, of some, cool, and rates over the pairs that it attends to."""
    launches, samples = dict[str, int](), {name: list[float]() for name in runs}
    for name, run in runs.items():
        milliseconds(run, 1)
        launches[name] = int(HOT_MILLISECONDS / milliseconds(run, 1))
    slow = {name for name in runs if not launches[name]}
    for number in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            if name not in slow:
                milliseconds(runs[name], launches[name])
                samples[name].append(milliseconds(runs[name], launches[name]))
            elif number < 2:
                samples[name].append(milliseconds(runs[name], 1))
    rested = {name: list[float]() for name in runs if name in cool and name not in slow}
    for _ in range(cool_rounds):
        for name in random.sample(list(rested), len(rested)):
            rested[name].append(_after_rest(runs[name], launches[name] * COOL_MILLISECONDS // HOT_MILLISECONDS))
    row: dict[str, Any] = {"case": case.name}
    for name in runs:
        flops = case.flops(name in DENSE) / 1e9
        row[f"{name} ms"] = statistics.median(samples[name])
        row[f"{name} TFLOP/s"] = flops / row[f"{name} ms"]
        if name in rested:
            row[f"{name} cool TFLOP/s"] = flops / statistics.median(rested[name])
    return row


def _after_rest(run: Run, launches: int) -> float:
    """Measure the milliseconds of a launch, of up to 10 after a rest.

    Caches and translations are empty then, which weighs on short launches: up to three of these are not timed.
    """
    torch.cuda.synchronize()
    time.sleep(0.4)
    for _ in range(min(3, launches // 10)):
        run()
    return milliseconds(run, max(1, min(launches, 10)))


def host_microseconds(case: Case) -> dict[str, Any]:
    """Time one call on the host: the kernel alone, the function, the operator; and replayed in a CUDA graph."""
    from planner.runtime.attention.operator import grouped_attention

    q, k, v = heads_last(case, case.tokens)
    out, kernel = torch.empty_like(q), kernel_for(q, k, v, case.layout, case.pattern)
    scale = case.head_dim**-0.5
    calls: dict[str, Run] = {
        "kernel": lambda: kernel(q, k, v, out, scale),
        "attention": lambda: attention(q, k, v, case.layout, case.pattern),
        "operator": lambda: grouped_attention(q, k, v, None, False, None, False, case.layout, case.pattern),
    }
    row: dict[str, Any] = {"case": case.name}
    for name, call in calls.items():
        for _ in range(20):
            call()
        samples = list[float]()
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(100):
                call()
            samples.append((time.perf_counter() - start) / 100)
        row[f"{name} µs"] = statistics.median(samples) * 1e6
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(q, k, v, case.layout, case.pattern)
    graph.replay()
    row["graph ms"] = statistics.median(milliseconds(graph.replay, 30) for _ in range(5))
    row["direct ms"] = statistics.median(milliseconds(calls["attention"], 30) for _ in range(5))
    return row


def matrix_product() -> float:
    """Measure the TFLOP/s of a large bf16 product in cuBLAS: the ceiling."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    milliseconds(lambda: a @ b, 3)
    return 2 * 8192**3 / statistics.median(milliseconds(lambda: a @ b, 10) for _ in range(5)) / 1e9


def build_peers(case: Case, wanted: list[str], configs: list[str]) -> dict[str, Run]:
    runs = {"ours": ours(case)}
    runs |= {f"ours as {config}": ours_as(case, KernelConfig.parse(config)) for config in configs}
    for name in wanted:
        if name == "fa4" and importlib.util.find_spec("flash_attn") is None:
            continue
        if name in ("flex", "ours dense") and (case.tokens > 70_000 or "8x8" in case.name):
            continue
        try:
            run = PEERS[name](case)
            run()
            torch.cuda.synchronize()
        except Exception as error:  # a peer that cannot do a shape is reported, and the others go on
            print(f"{case.name}: {name} cannot: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        runs[name] = run
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose names contain one of these, with commas between")
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers, with commas between")
    parser.add_argument("--configs", nargs="+", default=[], help="kernel configs to time ours in as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cool-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no case after so many seconds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--name", default="kernels", help="name of the results")
    options = parser.parse_args()
    chosen = cases(options.only)
    peers = [name for name in options.peers.split(",") if name]
    start, rows = time.monotonic(), list[dict[str, Any]]()
    ceiling = matrix_product()
    for case in chosen:
        if time.monotonic() - start > options.seconds:
            print(f"{case.name}: no time left", flush=True)
            continue
        runs = build_peers(case, peers, options.configs)
        rows.append(measure(case, runs, options.rounds, COOL, options.cool_rounds))
        print(rows[-1], flush=True)
        del runs
        torch.cuda.empty_cache()
    columns = {heading: None for row in rows for heading in row}
    table = [{heading: row.get(heading, "") for heading in columns} for row in rows]
    publish(options.name, table, options.output, matrix_product_tflops=round(ceiling, 1))
    if not options.only:
        publish(f"{options.name}_host", [host_microseconds(chosen[0])], options.output)


if __name__ == "__main__":
    main()
