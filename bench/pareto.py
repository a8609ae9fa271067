"""Plans from evidence against uniform ones: quality at equal attention cost, budgets and what they deliver, what helps.

    python -m bench.pareto emoji-flux --book prompts.safetensors
    python -m bench.pareto emoji-hunyuan --book prompts.safetensors --parts baselines,match
    python -m bench.pareto emoji-flux --draw      the results again as a picture

Evidence is recorded on calibration prompts, quality is measured on others, all of emoji that training never saw: PSNR
of each sample against the dense sample of the same seed. The cost of attention is its density: attended over all pairs,
on average over sites, heads and steps. Plans run as masked dense attention (planner.runtime.masked_dense), in float16
on a GPU: what is compared is the choice, not the kernels. The book holds the embeddings of the empty prompt, of the
calibration prompts and of the others, in this order (`--write-book`: needs the text encoder and the emoji pictures)."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import planner
from bench.protocol import RESULTS, publish
from planner.api import resolve_target
from planner.models.emoji.data.naming import is_held_out, toneless
from planner.models.emoji.data.sprites import Sprites, clips, images
from planner.models.emoji.reference import SHIPPED, load
from planner.models.emoji.text import PromptBook, TextEncoder, save_prompts
from planner.patterns.rules import Rules
from planner.patterns.spelling import parse_pattern
from planner.plan.evidence import Evidence
from planner.plan.plan import Decision, Plan
from planner.plan.quality import Quality, psnr
from planner.plan.target import Target
from planner.runtime.masked_dense import masked_model
from planner.search.allocation import Allocation, Allocator
from planner.search.budget import Budget
from planner.search.certify import certify, measured_gains

UNIFORM = {
    "emoji-flux": {
        "GRAT-X 16x16": "crisscross{axes=lines,group=16x16}",
        "GRAT-X 8x8": "crisscross{axes=lines,group=8x8}",
        "GRAT-B 8x8": "neighborhood{radius=1,edge=clamp,group=8x8}",
        "GRAT-B 8x8 radius 2": "neighborhood{radius=2,edge=clamp,group=8x8}",
        "GRAT-X 16x16 + pooled": "crisscross{axes=lines,group=16x16,pooled=mean}",
        "GRAT-X 8x8 + pooled": "crisscross{axes=lines,group=8x8,pooled=mean}",
        "GRAT-B 8x8 + pooled": "neighborhood{radius=1,edge=clamp,group=8x8,pooled=mean}",
    },
    "emoji-hunyuan": {
        "GRAT-X planes": "crisscross{axes=planes,group=2x8x8}",
        "GRAT-X lines": "crisscross{axes=lines,group=2x8x8}",
        "GRAT-B 2x8x8": "neighborhood{radius=1,edge=clamp,group=2x8x8}",
        "GRAT-X lines + pooled": "crisscross{axes=lines,group=2x8x8,pooled=mean}",
        "GRAT-B 2x8x8 + pooled": "neighborhood{radius=1,edge=clamp,group=2x8x8,pooled=mean}",
    },
}
POOLED = ("pooled", "far")
"""Endings of the names of runs with pooled groups; results of version 0.2 and before say far."""
DENSITIES = (0.7, 0.35, 0.2, 0.13, 0.08)
BUDGETS = {
    "psnr": (14.0, 16.0, 18.0, 20.0, 22.0, 24.0, 26.0, 28.0, 31.0, 35.0),
    "ssim": (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98),
}


class Study:
    """A model, its prompts, and all rows measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if device == "cuda" else torch.float32
        book, pipeline = PromptBook(options.book), load(options.model, device=device, dtype=dtype).pipeline
        shape = pipeline.shape if options.size is None else (*pipeline.shape[:-2], options.size, options.size)
        self.pipeline = replace(pipeline, embed=book, steps=options.steps, shape=shape)
        self.batch, self.only = options.batch, options.only
        self.budgets = [Quality(**{options.metric: asked}) for asked in options.budgets or BUDGETS[options.metric]]
        first = 1 + options.calibration
        self.calibration = _cases(book.prompts[1:first], options.cases or options.calibration)
        self.held = _cases(book.prompts[first:], options.held)
        self.rows = list[dict[str, Any]]()
        self.facts = dict[str, Any]()
        self.calibrated = dict[tuple[str, ...], torch.Tensor]()
        self.results, self.out = f"pareto-{options.model}{options.label}", options.out
        self.sample(self.pipeline.transformer, self.calibration[:2])  # libraries load at their first use
        start = time.perf_counter()
        self.dense_calibration = self.sample(self.pipeline.transformer, self.calibration)
        self.seconds = time.perf_counter() - start
        self.dense = self.sample(self.pipeline.transformer, self.held)

    def sample(self, model: torch.nn.Module, cases: Sequence[tuple[str, int]]) -> torch.Tensor:
        """Sample all cases with a model, (cases, 3, [frames,] height, width) in [0, 1]."""
        pipeline, samples = self.pipeline.using(model), list[torch.Tensor]()
        for at in range(0, len(cases), self.batch):
            prompts, seeds = zip(*cases[at : at + self.batch], strict=True)
            samples.append(pipeline(prompts, seeds=seeds))
        return torch.cat(samples)

    def calibrate(self, plan: Plan) -> torch.Tensor:
        """Sample the calibration cases under a plan, once for equal plans."""
        patterns = tuple(decision.pattern for decision in plan.decisions)
        if patterns not in self.calibrated:
            twin = masked_model(self.pipeline.transformer, plan)
            self.calibrated[patterns] = self.sample(twin, self.calibration)
        return self.calibrated[patterns]

    def measure(self, name: str, allocation: Allocation, quality: Quality | None = None, **more: Any) -> None:
        """Measure a plan on the held-out cases, by PSNR and by the metric of its budget, if any; publish the rows."""
        if not any(part in name for part in self.only):
            return
        start = time.perf_counter()
        samples = self.sample(masked_model(self.pipeline.transformer, allocation.plan), self.held)
        values = psnr(samples, self.dense)
        row = {
            "run": name,
            "density": allocation.density,
            "psnr": float(values.mean()),
            "psnr_p5": float(values.quantile(0.05)),
            "mse": float((samples - self.dense).square().mean()),
            "predicted_error": allocation.error,
            "predicted_ms": allocation.seconds * 1e3,
            **more,
        }
        if quality is not None:
            delivered = torch.tensor(quality.of(samples, self.dense))
            row |= {
                "metric": quality.metric,
                "asked": quality.asked,
                "delivered": float(delivered.mean()),
                "delivered_p5": float(delivered.quantile(0.05)),
                "kept": float((delivered >= quality.asked).float().mean()),
            }
        self.rows.append(row)
        print(f"{time.perf_counter() - start:.1f} s {row}", flush=True)
        correlation = spearman([row["predicted_error"] for row in self.rows], [row["mse"] for row in self.rows])
        publish(self.results, self.rows, self.out, **self.facts, rank_correlation=correlation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SHIPPED))
    parser.add_argument("--book", type=Path, default=Path("prompts.safetensors"), help="embeddings of all prompts")
    parser.add_argument("--draw", action="store_true", help="draw the results that there are and end")
    parser.add_argument("--write-book", action="store_true", help="write the book and end")
    parser.add_argument("--parts", default="baselines,match,curve,alone,budgets")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--calibration", type=int, default=24, help="calibration prompts")
    parser.add_argument("--cases", type=int, help="calibration cases, where they are not one of each prompt")
    parser.add_argument("--held", type=int, default=64, help="held-out cases")
    parser.add_argument("--size", type=int, help="side in pixels, in place of the model's own")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of the plans to measure")
    parser.add_argument("--metric", choices=sorted(BUDGETS), default="psnr", help="what budgets are of")
    parser.add_argument("--budgets", nargs="+", type=float, help="in dB, or SSIM")
    parser.add_argument("--label", default="", help="what the file of results is called after the model")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.draw:
        draw(options.model, options.out)
        return
    if options.write_book:
        write_book(options.model, options.book, options.calibration, options.held)
        return
    study = Study(options)
    start = time.perf_counter()
    model = study.pipeline.transformer
    evidence = planner.record(model, lambda twin: study.sample(twin, study.calibration))
    record = time.perf_counter() - start
    target = resolve_target("h100", model)
    start = time.perf_counter()
    gains = measured_gains(evidence, target, study.dense_calibration, study.calibrate, print)
    study.facts = {
        "sampling_s": study.seconds,
        "record_s": record,
        "gains_s": time.perf_counter() - start,
        "gains": gains,
        "ranges": [end for end, _, _ in evidence.ranges(3)],
    }
    print(study.facts, flush=True)
    allocator = Allocator(evidence, target, gains)
    known = {str(pattern) for patterns in allocator.patterns for pattern in patterns}
    named = {name: str(parse_pattern(text)) for name, text in UNIFORM[options.model].items()}
    uniform = {name: allocator.uniform(pattern) for name, pattern in named.items() if pattern in known}
    for part in options.parts.split(","):
        PARTS[part](study, evidence, target, allocator, uniform)


def baselines(study: Study, _e: Evidence, _t: Target, _a: Allocator, uniform: dict[str, Allocation]) -> None:
    """Measure the uniform plans."""
    for name, allocation in uniform.items():
        study.measure(name, allocation)


def match(
    study: Study, evidence: Evidence, target: Target, allocator: Allocator, uniform: dict[str, Allocation]
) -> None:
    """Measure ours at the density of each uniform plan, with and without pooled groups among the candidates."""
    near = Allocator(evidence, target, allocator.gains, patterns=near_only(allocator))
    for name, allocation in uniform.items():
        if "pooled" not in name:
            study.measure(f"ours without means at {name}", near.within(Budget(density=allocation.density)))
            study.measure(f"ours at {name}", allocator.within(Budget(density=allocation.density)))


def near_only(allocator: Allocator) -> list[str]:
    """List all candidates without pooled groups."""
    return sorted({str(pattern) for each in allocator.patterns for pattern in each[1:] if not pattern.pooled})


def curve(study: Study, _e: Evidence, _t: Target, allocator: Allocator, _u: dict[str, Allocation]) -> None:
    """Measure ours at other densities."""
    for share in DENSITIES:
        study.measure(f"ours at {share:g}", allocator.within(Budget(density=share)))


def alone(
    study: Study, evidence: Evidence, target: Target, allocator: Allocator, uniform: dict[str, Allocation]
) -> None:
    """Measure each freedom of the choice on top of those before it, at the density of the first uniform plan."""
    name, allocation = next(iter(uniform.items()))
    group = allocation.plan.decisions[-1].rules.patterns[0].group
    near = near_only(allocator)
    round_ones = [text for text in near if len(set(getattr(parse_pattern(text), "radius", ()))) < 2]
    of_group = [text for text in round_ones if parse_pattern(text).group == group]
    ways = {
        "one pattern a site": Allocator(evidence, target, ranges=1, patterns=of_group, by_head=False),
        "+ one a head": Allocator(evidence, target, ranges=1, patterns=of_group),
        "+ any group": Allocator(evidence, target, ranges=1, patterns=round_ones),
        "+ radius per axis": Allocator(evidence, target, ranges=1, patterns=near),
        "+ pooled groups": Allocator(evidence, target, ranges=1),
        "+ ranges of noise, errors counted alike": Allocator(evidence, target),
    }
    for way, each in ways.items():
        study.measure(f"{way}, at {name}", allocator.predicted(each.within(Budget(density=allocation.density)).plan))
    study.measure(f"{name}, every second site shifted", allocator.predicted(shifted(allocation.plan)))


def shifted(plan: Plan) -> Plan:
    """Shift the groups of every second sparse site by half a group."""
    decisions, sparse = list[Decision](), 0
    for decision in plan.decisions:
        sparse += decision.is_sparse
        if decision.is_sparse and sparse % 2 == 0:
            rules = Rules(tuple(replace(rule, pattern=rule.pattern.shifted()) for rule in decision.rules.rules))
            decision = replace(decision, pattern=str(rules))
        decisions.append(decision)
    return replace(plan, decisions=tuple(decisions))


def budgets(study: Study, evidence: Evidence, target: Target, allocator: Allocator, _u: dict[str, Allocation]) -> None:
    """Measure budgets: tuned on the calibration cases, counted on the held-out ones."""
    cases = [f"{prompt}, seed {seed}" for prompt, seed in study.calibration]
    for quality in study.budgets:
        start = time.perf_counter()
        plan = certify(
            evidence, target, quality, cases, study.dense_calibration, study.calibrate, "bench", "", progress=print
        )
        seconds = time.perf_counter() - start
        assert plan.certificate is not None
        allocation = allocator.predicted(plan)
        study.measure(f"asked {quality}", allocation, quality, promised=plan.certificate.bound, tuning_s=seconds)


PARTS: dict[str, Callable[..., None]] = {
    "baselines": baselines,
    "match": match,
    "curve": curve,
    "alone": alone,
    "budgets": budgets,
}


def draw(model: str, folder: Path) -> None:
    """Draw PSNR over density, uniform and ours, and budgets over what they deliver, as a PNG beside the results."""
    from matplotlib.figure import Figure

    paths = sorted(folder.glob(f"pareto-{model}*.json"))
    rows = [row for path in paths for row in json.loads(path.read_text())["rows"]]
    by_metric = {metric: [row for row in rows if row.get("metric") == metric] for metric in BUDGETS}
    by_metric = {metric: sorted(own, key=lambda row: row["asked"]) for metric, own in by_metric.items() if own}
    ours = [row for row in rows if row["run"].startswith("ours at")]
    kinds = {
        "ours": sorted(ours, key=lambda row: row["density"]),
        "ours without pooled groups": [row for row in rows if row["run"].startswith("ours without")],
        "uniform": [
            row for row in rows if row["run"].startswith("GRAT") and not row["run"].endswith((*POOLED, "shifted"))
        ],
        "uniform with pooled groups": [row for row in rows if row["run"].endswith(POOLED)],
    }
    figure = Figure(figsize=(7 + 5 * len(by_metric), 5), layout="constrained")
    plot, *budgets = np.atleast_1d(figure.subplots(1, 1 + len(by_metric)))
    for (label, points), marker in zip(kinds.items(), "oDs^", strict=True):
        line = "solid" if label == "ours" else "none"
        plot.plot(
            [row["density"] for row in points], [row["psnr"] for row in points], marker=marker, ls=line, label=label
        )
    plot.set(xlabel="density of attention", ylabel="PSNR against dense, dB, mean of held-out cases", title=model)
    for axes, (metric, own) in zip(budgets, by_metric.items(), strict=True):
        levels = [row["asked"] for row in own]
        axes.plot(levels, levels, color="gray", label="asked")
        axes.plot(levels, [row["delivered_p5"] for row in own], "o-", label="5th percentile of held-out cases")
        axes.plot(levels, [row["delivered"] for row in own], "s-", label="mean of held-out cases")
        axes.plot(levels, [row["promised"] for row in own], "x", label="promised: 95 % of cases keep it")
        name = f"{metric.upper()}{', dB' if metric == 'psnr' else ''}"
        axes.set(xlabel=f"{name} asked", ylabel=f"{name} delivered", title="budgets")
    for axes in (plot, *budgets):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / f"pareto-{model}.png", dpi=90, metadata={"Software": None})


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation of what is finite in both."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(pairs) < 3:
        return math.nan
    ranks = [[sorted(values).index(value) for value in values] for values in zip(*pairs, strict=True)]
    return statistics.correlation(*ranks)


def write_book(model: str, path: Path, calibration: int, held: int) -> None:
    """Write embeddings of the empty prompt, of calibration prompts and of held prompts, all of held-out emoji."""
    unseen = (clips() if model == "emoji-hunyuan" else images()).where(is_held_out)
    save_prompts(path, ["", *_names(unseen, calibration + held)], TextEncoder())


def _names(sprites: Sprites, count: int) -> list[str]:
    """List the names of ``count`` sprites, one for each emoji whatever its skin tones, in order of their digests."""
    first = {toneless(code): index for index, code in reversed(list(enumerate(sprites.codes)))}
    order = sorted(first.values(), key=lambda index: hashlib.sha256(sprites.codes[index].encode()).digest())
    return [sprites.names[index] for index in order[:count]]


def _cases(prompts: Sequence[str], count: int) -> list[tuple[str, int]]:
    """List pairs (prompt, seed); where prompts do not suffice they are repeated with other seeds."""
    return [(prompts[number % len(prompts)], number) for number in range(count)]


if __name__ == "__main__":
    main()
