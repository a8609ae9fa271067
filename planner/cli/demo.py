"""The demo: plans for two full-size models, then the reference models sampled dense and planned on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from planner.api import compile as compile_planned
from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.cli import render
from planner.models.catalogue import build, load_config
from planner.models.emoji.drawing import save_grid
from planner.models.emoji.reference import load
from planner.models.emoji.sampling import Pipeline
from planner.models.inputs import example_inputs
from planner.models.metrics.pictures import as_pictures, side_by_side
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
PICTURE, CLIP = "demo.png", "demo.webp"


@dataclass(frozen=True)
class Sample:
    """What is sampled: a reference model, its prompts, steps, and the pattern that is planned."""

    model: str
    prompts: tuple[str, ...]
    steps: int
    pattern: str
    group: str


SAMPLES = (
    Sample("emoji-flux", ("red apple", "rocket"), 6, "crisscross", "8x8"),
    Sample("emoji-hunyuan", ("rocket",), 5, "neighborhood", "2x8x8"),
)


def run_demo(output: Path) -> None:
    """Print a table of full-size plans; sample the reference models, dense and planned; write both to a folder."""
    out = render.console()
    out.print(f"Full-size architectures, planned for an {TARGET} from their graphs: no weights, no GPU.\n")
    out.print(_full_size_table())
    out.print("\nGRAT-X is the criss-cross of groups, GRAT-B the 3×3(×3) surrounding groups (arXiv 2505.14687).")
    out.print("Predicted: roofline over matrix products and attention. bound: dense over attended pairs.\n")
    out.print(
        "Small models with trained weights, float32, sampled on this CPU, dense and planned from the same seeds:\n"
    )
    out.print(_samples_table(output))
    out.print(f"\nDense, planned, and four times their difference: {output / PICTURE} and {output / CLIP}.")
    out.print("\nNext:")
    out.print("  planner plan flux.1-dev --size 4096x4096 --speedup 8 -o plan.json")
    out.print("  planner explain plan.json transformer_blocks.0.attn")
    out.print("  planner models")


def _full_size_table() -> Any:
    table = render.table(
        "model",
        ">size",
        ">tokens",
        ">GRAT-X density",
        ">attention",
        ">bound",
        ">step",
        ">GRAT-B density",
        ">attention",
        ">bound",
        ">step",
    )
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


def _samples_table(output: Path) -> Any:
    """Sample every model dense and planned, write the pictures, and tabulate time and likeness."""
    table = render.table(
        "model", "prompt", "pattern", ">tokens", ">density", ">dense s", ">planned s", ">speed-up", ">PSNR dB", ">SSIM"
    )
    output.mkdir(parents=True, exist_ok=True)
    rows = list[torch.Tensor]()
    for sample in SAMPLES:
        pipeline = load(sample.model).pipeline
        compiled = compile_planned(pipeline.transformer, pattern=sample.pattern, group=sample.group, min_speedup=0)
        dense, dense_seconds = _timed(sample, pipeline, "dense")
        planned, seconds = _timed(sample, pipeline.using(compiled), "planned")
        decision = report(compiled).plans[0].decisions[-1]
        pairs = as_pictures(planned), as_pictures(dense)
        table.add_row(
            sample.model,
            "; ".join(sample.prompts),
            decision.pattern,
            f"{decision.queries:,}",
            f"{decision.density:.1%}",
            f"{dense_seconds:.1f}",
            f"{seconds:.1f}",
            f"{dense_seconds / seconds:.2f}x",
            f"{float(psnr(*pairs).mean()):.1f}",
            f"{float(ssim(*pairs).mean()):.3f}",
        )
        shown = side_by_side(dense, planned)
        if shown.dim() == 5:
            save_grid(output / CLIP, shown, columns=1)
            shown = torch.nn.functional.interpolate(shown[:, :, shown.shape[2] // 2], scale_factor=2)
        rows.append(shown)
    save_grid(output / PICTURE, torch.cat(rows), columns=1)
    return table


def _timed(sample: Sample, pipeline: Pipeline, what: str) -> tuple[torch.Tensor, float]:
    """Samples, and the seconds of all steps but the first, which plans, scaled to all."""
    times = [time.perf_counter()]
    with render.steps(f"{sample.model}, {what}", sample.steps) as advance:

        def stepped(_: torch.Tensor) -> None:
            times.append(time.perf_counter())
            advance()

        made = pipeline(sample.prompts, steps=sample.steps, each_step=stepped)
    return made, (times[-1] - times[1]) * sample.steps / (sample.steps - 1)
