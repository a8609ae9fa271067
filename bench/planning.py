"""What planning costs: whole commands, one site as its tokens grow, capture with provenance, FlexAttention's mask.

python -m bench.planning                  everything
python -m bench.planning allocations      from evidence of FLUX's size to plans
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.protocol import publish
from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.models.catalogue import build, load_config
from planner.models.inputs import example_inputs
from planner.patterns.catalogue import catalogue
from planner.patterns.density import density
from planner.patterns.layout import TokenLayout
from planner.plan.evidence import Evidence, SiteEvidence
from planner.plan.options import Options
from planner.plan.plan import Plan
from planner.plan.site import AttentionSite
from planner.plan.target import Target
from planner.provenance.find_sites import find_sites
from planner.provenance.propagate import trace_provenance
from planner.runtime.kernels.bundle import problems_of
from planner.runtime.measure import interleaved
from planner.search.allocation import Allocator
from planner.search.budget import Budget
from planner.search.decide import decide

SIDES = (64, 128, 256, 512, 1024)
BLOCK_MASK_SIDES = (64, 128, 192, 256)


def commands() -> list[dict[str, Any]]:
    """Time whole processes, median of three."""
    runs = {
        "planner --help": ["--help"],
        "planner models": ["models"],
        "planner plan flux.1-dev --size 8192x8192": ["plan", "flux.1-dev", "--size", "8192x8192"],
        "planner plan hunyuanvideo": ["plan", "hunyuanvideo"],
    }

    def process(arguments: list[str]) -> Callable[[], Any]:
        code = "from planner.cli import main; main()"
        return lambda: subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)

    seconds = interleaved({name: process(arguments) for name, arguments in runs.items()}, repeats=3)
    return [{"command": name, "seconds": median} for name, median in seconds.items()]


def sites() -> list[dict[str, Any]]:
    """Time deciding for one site, all candidates of a budget included."""
    options, h100 = Options(density=0.9), Target.named("h100")

    def site(side: int) -> AttentionSite:
        layout = TokenLayout.parse(f"text:512 | h:{side} w:{side}")
        return AttentionSite("attn", 1, 24, 24, layout.tokens, layout.tokens, 128, "bfloat16", layout, layout)

    drawn = {side: site(side) for side in SIDES}
    seconds = interleaved({str(side): lambda s=s: decide([s], options, h100) for side, s in drawn.items()}, repeats=50)
    rows = []
    for side, one in drawn.items():
        tracemalloc.start()
        decide([one], options, h100)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append({"tokens": side * side, "plan_us": seconds[str(side)] * 1e6, "peak_kib": peak / 1024})
    return rows


def captures() -> list[dict[str, Any]]:
    """Capture and provenance of the whole FLUX.1-dev, 57 sites."""
    config = load_config("flux.1-dev")
    model, rows = build(config, dtype=torch.bfloat16), []
    for side in (64, 128, 256, 512):
        inputs = example_inputs(config, (side * 16, side * 16))
        call, start = Call.of(model, (), inputs), time.perf_counter()
        capture = capture_module(model, (), inputs)
        captured = time.perf_counter()
        sites = find_sites(capture, trace_provenance(capture, call), call)
        traced = time.perf_counter()
        rows.append(
            {
                "image_tokens": side * side,
                "sites": len(sites),
                "capture_s": captured - start,
                "provenance_s": traced - captured,
                "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
        )
    return rows


def allocations() -> list[dict[str, Any]]:
    """Time plans within budgets from evidence of 57 sites of 24 heads at 4096², with scores drawn at random.

    rules, launches: of a site, on average. kernels: that all sites share, those of means included.
    """
    layout = TokenLayout.parse("text:512 | h:256 w:256")
    patterns, draw, calls, heads = catalogue(layout), torch.Generator().manual_seed(0), 6, 24
    sites = [
        AttentionSite(f"blocks.{n}", 1, heads, heads, layout.tokens, layout.tokens, 128, "bfloat16", layout, layout)
        for n in range(57)
    ]
    h100, dense = Target.named("h100"), Options(pattern="dense")
    plan = Plan("Flux", "", "h100", dense, decide(sites, dense, h100), "timestep", 0, 0.0).verify()
    shares = torch.tensor([density(pattern, layout) for pattern in patterns])[None, :, None]
    by_site = dict[str, SiteEvidence]()
    for site in sites:
        recall = shares ** torch.rand(calls, len(patterns), heads, generator=draw)
        error, power = (1 - recall) ** 2, torch.ones(calls, heads)
        by_site[site.name] = SiteEvidence(
            tuple(map(str, patterns)), recall, error, power, torch.rand(calls, generator=draw)
        )
    steps = tuple(1 - n / 28 for n in range(28))
    evidence = Evidence(plan, steps, tuple(range(0, 28, 5)), by_site, {}).verify()
    start = time.perf_counter()
    allocator, rows = Allocator(evidence, h100), list[dict[str, Any]]()
    ready = time.perf_counter() - start
    for budget in (Budget(density=0.3), Budget(density=0.1), Budget(speedup=4.0), Budget(recall=0.8)):
        start = time.perf_counter()
        plan = allocator.within(budget).plan
        planned, sparse = time.perf_counter(), [decision for decision in plan.decisions if decision.is_sparse]
        problems = [problem for decision in sparse for problem in problems_of(plan, decision, h100)]
        row = {"budget": str(budget), "choices": len(allocator.choices), "candidates": len(patterns)}
        row |= {"ready_s": ready, "plan_s": planned - start, "launches_s": time.perf_counter() - planned}
        row |= {"rules": sum(len(decision.rules.rules) for decision in sparse) / len(sparse)}
        row |= {"launches": sum(not problem.only_means for problem in problems) / len(sparse)}
        rows.append(row | {"kernels": len(set(problems))})
    return rows


def block_masks() -> list[dict[str, Any]]:
    """Time FlexAttention's create_block_mask for the same pattern, each in its own process, compiled and not."""
    rows = []
    for side in BLOCK_MASK_SIDES:
        row: dict[str, Any] = {"tokens": side * side}
        for compiled in (False, True):
            name = "compiled" if compiled else "eager"
            done = subprocess.run(
                [sys.executable, "-m", "bench.planning", str(side), str(int(compiled))],
                capture_output=True,
                text=True,
                check=False,
            )
            # None where it does not fit in memory.
            seconds, gib = map(float, done.stdout.split()) if done.returncode == 0 else (None, None)
            row |= {f"{name}_s": seconds, f"{name}_peak_gib": gib}
        rows.append(row)
    return rows


def block_mask(side: int, compiled: bool) -> None:
    """Print the seconds (compilation left out) and the peak memory of one block mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Evaluate crisscross{group=16x16} in its plainest form, which the compiler handles best."""
        return (q // side // 16 == k // side // 16) | (q % side // 16 == k % side // 16)

    make = torch.compile(create_block_mask) if compiled else create_block_mask
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build_mask = partial(make, mask_mod, None, None, side * side, side * side, device="cpu")
    seconds = interleaved({"mask": build_mask}, repeats=3)["mask"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(seconds, peak / 2**20)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        # The widest masks do not fit in memory: fail instead of taking the machine down.
        resource.setrlimit(resource.RLIMIT_AS, (40 * 2**30, 40 * 2**30))
        block_mask(int(sys.argv[1]), sys.argv[2] == "1")
    elif sys.argv[1:] == ["allocations"]:
        publish("planning_allocations", allocations())
    else:
        publish("planning_allocations", allocations())
        publish("planning_sites", sites())
        publish("planning_captures", captures())
        publish("planning_commands", commands())
        publish("planning_block_masks", block_masks())
