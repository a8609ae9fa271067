"""The demo: plans for two full-size models, then the reference models sampled dense and planned on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from planner.api import allocate
from planner.api import compile as compile_planned
from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.cli import render
from planner.cli.machine import BUSY, Usage, others_share
from planner.models.catalogue import build, load_config
from planner.models.emoji.figure import Cell, difference, draw_figure
from planner.models.emoji.reference import DEMO_PROMPTS, load, load_evidence
from planner.models.emoji.sampling import Pipeline
from planner.models.inputs import example_inputs
from planner.models.metrics.images import as_images
from planner.plan.options import Options
from planner.plan.plan import Plan
from planner.plan.quality import psnr, ssim
from planner.plan.target import Target
from planner.runtime.model.compiled import report
from planner.stages import plan_capture

FULL_SIZE = (
    ("flux.1-dev", (1024, 1024), 1, "16x16"),
    ("flux.1-dev", (2048, 2048), 1, "16x16"),
    ("flux.1-dev", (4096, 4096), 1, "16x16"),
    ("flux.1-dev", (8192, 8192), 1, "16x16"),
    ("hunyuanvideo", (1280, 720), 129, "4x8x8"),
)
TARGET = "h100"


@dataclass(frozen=True)
class Sample:
    """One part of the demo: a reference model, its prompts, steps, the uniform pattern, and the file of the figure."""

    model: str
    prompts: tuple[str, ...]
    steps: int
    pattern: str
    group: str
    figure: str


SAMPLES = (
    Sample("emoji-flux", DEMO_PROMPTS["emoji-flux"], 6, "crisscross", "8x8", "demo.png"),
    Sample("emoji-hunyuan", DEMO_PROMPTS["emoji-hunyuan"], 4, "crisscross", "2x8x8", "demo.webp"),
)


@dataclass(frozen=True)
class Run:
    """Samples of one plan, the plan (None: dense), the seconds of all steps, and the CPU share of other processes.

    samples: (prompts, 3, [frames,] height, width) in [0, 1].
    """

    samples: torch.Tensor
    plan: Plan | None
    seconds: float
    others: float


def run_demo(output: Path) -> None:
    """Print a table of full-size plans; sample the reference models, dense and planned; write both to a folder."""
    out = render.console()
    out.print(f"Full-size architectures, planned for an {TARGET} from their graphs: no weights, no GPU.\n")
    out.print(_full_size_table())
    out.print("\nGRAT-X is the criss-cross of groups, GRAT-B the 3×3(×3) surrounding groups (arXiv 2505.14687).")
    out.print("Predicted: roofline over matrix products and attention. bound: dense over attended pairs.\n")
    out.print(
        "Small models with trained weights, float32, sampled on this CPU from the same seeds: dense, by one pattern\n"
        "for every layer and head, and by a plan from evidence that attends to as many pairs:\n"
    )
    table, others = _samples_table(output)
    out.print(table)
    if others > BUSY:
        out.print(
            f"\nOther processes had up to {others:.0%} of this machine meanwhile, so no speed-up is given."
            " Run it again when it is quiet."
        )
    out.print(f"\nFigures: {', '.join(str(output / sample.figure) for sample in SAMPLES)}.")
    out.print("\nNext:")
    out.print("  planner plan flux.1-dev --size 4096x4096 --speedup 8 -o plan.json")
    out.print("  planner explain plan.json transformer_blocks.0.attn")
    out.print("  planner models")


def _full_size_table() -> Any:
    table = render.table(
        "model", ">size", ">tokens",
        ">GRAT-X: density", ">attention", ">bound", ">whole step",
        ">GRAT-B: density", ">attention", ">bound", ">whole step",
    )  # fmt: skip
    for name, (width, height), frames, group in FULL_SIZE:
        size = f"{width}x{height}" + (f"x{frames}" if frames > 1 else "")
        with render.progress(f"planning {name} at {size}"):
            plans = _plans(name, (width, height), frames, [("crisscross", group), ("neighborhood{radius=1}", group)])
        tokens = max(decision.queries for decision in plans[0].decisions)
        table.add_row(name, size, f"{tokens:,}", *(cell for plan in plans for cell in _cells(plan)))
    return table


def _plans(name: str, size: tuple[int, int], frames: int, wanted: Sequence[tuple[str, str]]) -> list[Plan]:
    config = load_config(name)
    model, inputs = build(config, dtype=torch.bfloat16), example_inputs(config, size, frames)
    call, capture = Call.of(model, (), inputs), capture_module(model, (), inputs)
    return [
        plan_capture(Options(pattern=pattern, group=group), Target.named(TARGET), capture, call).plan
        for pattern, group in wanted
    ]


def _cells(plan: Plan) -> list[str]:
    widest = max(plan.decisions, key=lambda decision: decision.dense_flops)
    if not widest.is_sparse:
        return ["dense", "1x", "1x", "1x"]
    return [
        f"{widest.density:.1%}",
        f"{plan.attention_speedup:.1f}x",
        f"{plan.bound:.1f}x",
        f"{plan.step_speedup:.2f}x",
    ]


def _samples_table(output: Path) -> tuple[Any, float]:
    """Draw the figures; return a table of the plans, and the greatest share of the CPU that other processes had."""
    table = render.table("model", "plan", ">density", ">seconds", ">speed-up", ">PSNR dB", ">SSIM")
    others = 0.0
    for sample in SAMPLES:
        dense, *planned = _runs(sample)
        others = max(others, *(run.others for run in (dense, *planned)))
        table.add_row(sample.model, "dense", "100.0%", f"{dense.seconds:.1f}", "", "", "")
        for name, run in zip(("one pattern", "from evidence"), planned, strict=True):
            pair = as_images(run.samples), as_images(dense.samples)
            is_quiet = max(dense.others, run.others) <= BUSY
            table.add_row(
                sample.model,
                f"{name}: {sample.pattern} {sample.group}" if name == "one pattern" else name,
                f"{_density(run):.1%}",
                f"{run.seconds:.1f}",
                f"{dense.seconds / run.seconds:.2f}x" if is_quiet else "busy",
                f"{float(psnr(*pair).mean()):.1f}",
                f"{float(ssim(*pair).mean()):.3f}",
            )
        _draw(sample, dense, planned, output / sample.figure)
    return table, others


def _runs(sample: Sample) -> tuple[Run, Run, Run]:
    """Sample a model dense, by one pattern, and by a plan from evidence of the same density."""
    pipeline, evidence = load(sample.model).pipeline, load_evidence(sample.model)
    uniform = compile_planned(pipeline.transformer, pattern=sample.pattern, group=sample.group, min_speedup=0)
    dense = _timed(sample, pipeline, "dense")
    one = _timed(sample, pipeline.using(uniform), "one pattern")
    plan = allocate(evidence, density=_density(one), target="cpu")
    chosen = compile_planned(pipeline.transformer, plan=plan)
    return dense, one, _timed(sample, pipeline.using(chosen), "from evidence")


def _density(run: Run) -> float:
    """Return the share of pairs that are attended, at the sites that can be sparse."""
    decisions = [decision for decision in run.plan.decisions if decision.own_grid is not None] if run.plan else []
    pairs = [decision.batch * decision.heads * decision.queries**2 for decision in decisions]
    attended = sum(n * decision.density for n, decision in zip(pairs, decisions, strict=True))
    return attended / sum(pairs) if pairs else 1.0


def _draw(sample: Sample, dense: Run, planned: Sequence[Run], path: Path) -> None:
    is_quiet = max(run.others for run in (dense, *planned)) <= BUSY
    names = (f"one pattern: {sample.pattern} {sample.group}", "chosen from evidence")
    rows = list[tuple[str, list[Cell]]]()
    for number, prompt in enumerate(sample.prompts):
        reference = dense.samples[number]
        cells = [Cell(reference, f"dense\n100% of the pairs{_seconds(dense, is_quiet)}")]
        for name, run in zip(names, planned, strict=True):
            planned_sample = run.samples[number]
            decibels = float(psnr(as_images(planned_sample[None]), as_images(reference[None])).mean())
            cells.append(Cell(planned_sample, f"{name}\n{_density(run):.0%} of the pairs{_seconds(run, is_quiet)}"))
            change = difference(planned_sample, reference)
            cells.append(Cell(change, f"difference from dense\nPSNR {decibels:.1f} dB"))
        rows.append((f'"{prompt}"', cells))
    title = f"{sample.model}: {sample.steps} steps, guidance 4, float32, on this CPU, the same seeds"
    draw_figure(path, rows, title)


def _seconds(run: Run, is_quiet: bool) -> str:
    return f", {run.seconds:.1f} s" if is_quiet else ""


def _timed(sample: Sample, pipeline: Pipeline, what: str) -> Run:
    """Sample by a pipeline, and time its steps without the first, which plans; the time is scaled to all steps."""
    times, usage = [time.perf_counter()], list[Usage | None]()
    with render.steps(f"{sample.model}, {what}", sample.steps) as advance:

        def record_step(_: torch.Tensor) -> None:
            times.append(time.perf_counter())
            usage.append(Usage.now())
            advance()

        samples = pipeline(sample.prompts, steps=sample.steps, each_step=record_step)
    plans = report(pipeline.transformer).plans if what != "dense" else ()
    seconds = (times[-1] - times[1]) * sample.steps / (sample.steps - 1)
    return Run(samples, plans[0] if plans else None, seconds, others_share(usage[0], usage[-1]))
