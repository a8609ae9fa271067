"""The demo: plans for two full-size models, then a small one run dense and planned on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from models.catalogue import build, load_config
from models.inputs import example_inputs
from planner.api import compile as compile_planned
from planner.capture import Call, capture_module
from planner.choose import Options
from planner.cli import render
from planner.pipeline import plan_capture
from planner.plan import Plan
from planner.target import Target
from runtime.compiled import report
from runtime.measure import interleaved
from runtime.reference import MaskedDense

FULL_SIZE = (
    ("flux.1-dev", (1024, 1024), 1, "16x16"),
    ("flux.1-dev", (2048, 2048), 1, "16x16"),
    ("flux.1-dev", (4096, 4096), 1, "16x16"),
    ("flux.1-dev", (8192, 8192), 1, "16x16"),
    ("hunyuanvideo", (1280, 720), 129, "4x8x8"),
)
TARGET = "h100"
SMALL = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "axes_dims_rope": [16, 24, 24],
    "guidance_embeds": False,
}
REPEATS = 5


def run_demo() -> None:
    """Print both tables and what to try next."""
    torch.manual_seed(0)
    out = render.console()
    out.print(f"Full-size architectures, planned for an {TARGET} from their graphs: no weights, no GPU.\n")
    out.print(_full_size_table())
    out.print("\nGRAT-X is the criss-cross of groups, GRAT-B the 3×3(×3) surrounding groups (arXiv 2505.14687).")
    out.print("Predicted: roofline over matrix products and attention. bound: dense over attended pairs.\n")
    _run_small(out.print)
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


def _run_small(say: Callable[[str], None]) -> None:
    """A small FLUX with random weights on a 64 by 64 grid, dense, planned, and as the judge has it."""
    with render.progress("running a small FLUX on this CPU"):
        model = build(SMALL, device="cpu")
        inputs = example_inputs(SMALL, (1024, 1024), device="cpu", dtype=torch.float32)
        with torch.inference_mode():
            planned = compile_planned(model, pattern="crisscross", group="8x8")
            dense_out, planned_out = model(**inputs)[0], planned(**inputs)[0]
            (plan,) = report(planned).plans
            with MaskedDense(plan):
                judged = model(**inputs)[0]
            runs = {"dense": lambda: model(**inputs), "planned": lambda: planned(**inputs)}
            seconds = interleaved(runs, REPEATS)
    first = plan.decisions[0]
    say("A small FluxTransformer2DModel with random weights, float32, run on this CPU:")
    say(f"  layout    {first.layout}")
    say(f"  pattern   {first.pattern}, density {first.density:.1%}")
    say(f"  dense     {seconds['dense'] * 1e3:.0f} ms a step")
    say(f"  planned   {seconds['planned'] * 1e3:.0f} ms a step, {seconds['dense'] / seconds['planned']:.2f}x")
    say(f"  error     {_relative(planned_out, judged):.1e} relative to masked dense attention, which it must equal")
    say(f"  change    {_relative(planned_out, dense_out):.1e} relative to dense; random weights attend everywhere")


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
