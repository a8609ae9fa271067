"""The commands that record evidence, tune a plan for a quality, and show evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from planner.api import record, tune
from planner.cli import render
from planner.errors import BadEvidence, BadOption, UnknownName
from planner.extras import require
from planner.models.emoji.reference import load
from planner.models.emoji.sampling import Pipeline
from planner.models.emoji.text import PromptBook
from planner.patterns.base import Pattern
from planner.patterns.crisscross import CrissCross
from planner.patterns.neighborhood import Neighborhood
from planner.patterns.spelling import parse_pattern
from planner.plan.atomic_write import replacing
from planner.plan.evidence import Evidence
from planner.plan.plan import Plan
from planner.plan.quality import Quality
from planner.plan.target import Target
from planner.search.allocation import Allocation, Allocator
from planner.search.budget import Budget

POINTS = 12
"""Points of the curve of plans chosen from evidence."""


@dataclass(frozen=True)
class Sampler:
    """A model that ships with weights, and the (prompt, seed) of each of its cases."""

    pipeline: Pipeline
    cases: tuple[tuple[str, int], ...]

    @staticmethod
    def of(model: str, size: tuple[int, int] | None, steps: int | None, count: int) -> Sampler:
        """Make a sampler of the shipped prompts, with seeds from 0, on a GPU if there is one.

        Raises NoWeights, UnknownName and BadOption.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline = load(model, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32).pipeline
        if size is not None:
            pipeline = replace(pipeline, shape=(*pipeline.shape[:-2], size[1], size[0]))
        assert isinstance(pipeline.embed, PromptBook)
        prompts = [prompt for prompt in pipeline.embed.prompts if prompt]
        if count < 3:
            raise BadOption("cases", count, "a number of at least 3")
        cases = tuple((prompts[number % len(prompts)], number) for number in range(count))
        return Sampler(replace(pipeline, steps=steps or pipeline.steps), cases)

    def __call__(self, model: torch.nn.Module) -> torch.Tensor:
        """Sample all cases by a model: (cases, 3, [frames,] height, width) in [0, 1]."""
        prompts, seeds = zip(*self.cases, strict=True)
        return self.pipeline.using(model)(prompts, seeds=seeds)

    @property
    def named(self) -> list[str]:
        """The prompt and seed of each case, as text."""
        return [f"{prompt}, seed {seed}" for prompt, seed in self.cases]


def calibrate(sampler: Sampler, output: Path) -> None:
    """Record evidence into a file, or go on with a recording that was interrupted."""
    with render.progress("recording"):
        evidence = record(sampler.pipeline.transformer, sampler, path=output, sampler_calls=sampler.pipeline.steps)
    render.console().print(describe(evidence), soft_wrap=True)
    render.console().print(f"written to {output}", soft_wrap=True)


def describe(evidence: Evidence) -> str:
    """Describe evidence in a sentence: its model, sites, candidates and calls, and when it was recorded."""
    sites, calls = len(evidence.sites), len(evidence.recorded)
    most = max(len(site.candidates) for site in evidence.sites.values())
    return (
        f"evidence of {evidence.plan.model}: {sites} sites, up to {most} candidates each, at {calls} of "
        f"{len(evidence.steps)} calls, recorded {evidence.toolchain['date']} on {evidence.toolchain['device']}"
    )


def tune_plan(sampler: Sampler, quality: Quality, evidence: Path | None, target: str, quiet: bool) -> Plan:
    """Find the fastest plan that keeps a quality; prints what is measured on the way, unless quiet."""
    out = render.console()
    known = None if evidence is None else Evidence.load(evidence)
    with render.progress("tuning"):
        return tune(
            sampler.pipeline.transformer,
            sampler,
            quality,
            cases=sampler.named,
            evidence=known,
            target=target,
            progress=lambda text: None if quiet else out.print(text, soft_wrap=True),
        )


def pareto(evidence: Evidence, target: str, output: Path | None, as_json: bool) -> None:
    """Tabulate predicted time and error of each uniform plan, and of plans from evidence between dense and fastest."""
    allocator = Allocator(evidence, Target.named(target))
    dense, fastest = allocator.predicted(evidence.plan), allocator.within(Budget(recall=0.0))
    shared = set.intersection(*({str(pattern) for pattern in each[1:]} for each in allocator.patterns))
    uniform = {text: allocator.uniform(text) for text in sorted(shared) if _is_grat(parse_pattern(text))}
    most = dense.seconds / fastest.seconds * (1 - 1e-6)
    chosen = [allocator.within(Budget(speedup=most ** (point / (POINTS - 1)))) for point in range(POINTS)]
    rows = [_row(text, allocation, dense) for text, allocation in uniform.items()]
    rows += [_row("chosen from evidence", allocation, dense) for allocation in chosen]
    if output is not None:
        _draw(rows, describe(evidence), target, output)
    if as_json:
        render.print_json(rows)
        return
    out = render.console()
    out.print(describe(evidence), soft_wrap=True)
    table = render.table("plan", ">density", ">ms", ">attention", ">predicted error")
    for row in rows:
        table.add_row(
            str(row["plan"]),
            f"{row['density']:.3f}",
            f"{row['ms']:.3f}",
            f"{row['speedup']:.2f}x",
            f"{row['error']:.3g}",
        )
    out.print(table)
    if output is not None:
        out.print(f"drawn in {output}", soft_wrap=True)


def show_site(evidence: Evidence, plan: Plan, site: str) -> list[dict[str, Any]]:
    """List the evidence of each candidate of a plan's site: recall of the mean and of the worst head, relative error.

    Raises BadEvidence for that of another model or other inputs, UnknownName for a site without evidence.
    """
    recorded = evidence.plan
    if (recorded.model, recorded.inputs) != (plan.model, plan.inputs):
        fault = f"it was recorded of a {recorded.model} with inputs {recorded.inputs}"
        raise BadEvidence(f"a {plan.model} with inputs {plan.inputs}", fault)
    if site not in evidence.sites:
        raise UnknownName("site with evidence", site, evidence.sites)
    measured = evidence.sites[site]
    recall, error = measured.recall.mean(0), measured.error.mean(0)
    return [
        {
            "candidate": text,
            "recall": float(recall[at].mean()),
            "worst head": float(recall[at].min()),
            "relative error": float((error[at] / measured.power.mean(0)).mean()),
        }
        for at, text in enumerate(measured.candidates)
    ]


def _is_grat(pattern: Pattern) -> bool:
    """Tell whether a pattern is one of GRAT's: the criss-cross, or the nearest groups in every direction."""
    is_near = isinstance(pattern, Neighborhood) and set(pattern.radius) == {1}
    return is_near or isinstance(pattern, CrissCross)


def _row(name: str, allocation: Allocation, dense: Allocation) -> dict[str, Any]:
    return {
        "plan": name,
        "density": allocation.density,
        "ms": allocation.seconds * 1e3,
        "speedup": dense.seconds / allocation.seconds,
        "error": allocation.error,
    }


def _draw(rows: Sequence[dict[str, Any]], title: str, target: str, output: Path) -> None:
    """Draw a PNG of predicted time against predicted error; raises MissingDependency."""
    figure = require("matplotlib.figure", "drawing").Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    kinds: dict[str, Callable[[dict[str, Any]], bool]] = {
        "chosen from evidence": lambda row: row["plan"] == "chosen from evidence",
        "uniform GRAT-X": lambda row: row["plan"].startswith("crisscross") and "pooled" not in row["plan"],
        "uniform GRAT-B": lambda row: row["plan"].startswith("neighborhood") and "pooled" not in row["plan"],
        "uniform, with pooled groups": lambda row: "pooled" in row["plan"],
    }
    for (label, belongs), marker in zip(kinds.items(), "os^x", strict=True):
        points = [(row["ms"], max(row["error"], 1e-12)) for row in rows if belongs(row) and row["error"] > 0]
        line = "solid" if label == "chosen from evidence" else "none"
        across, up = zip(*points, strict=True) if points else ((), ())
        axes.plot(across, up, linestyle=line, marker=marker, label=label)
    axes.set(xlabel=f"predicted ms of attention a step, {target}", ylabel="predicted error of the model's output")
    axes.set_yscale("log")
    axes.set_title(title, fontsize=7)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(output) as scratch:
        figure.savefig(scratch, dpi=120, metadata={"Software": None})
