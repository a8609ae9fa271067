"""Rendering: plans, candidates and patterns as rich tables, plain text where there is no terminal, or JSON."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from planner.errors import UnknownName

if TYPE_CHECKING:
    from planner.plan.diff import Change
    from planner.plan.plan import Decision, Plan
    from planner.search.rank import Candidate

PLAIN_WIDTH = 1000


def console() -> Console:
    """Return standard output with a terminal's width and colours, or as plain text with unwrapped lines."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False, markup=False)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Show a spinner with the elapsed time while open, on standard error, if that is a terminal."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        bar.add_task(what, total=None)
        yield


@contextlib.contextmanager
def steps(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar over ``total`` steps, on standard error, if that is a terminal; yield what is called after each."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def print_json(data: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(data, indent=1))


def table(*headings: str) -> Table:
    """Make a table; columns whose heading begins with > are right-aligned."""
    empty = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True, padding=(0, 2))
    for heading in headings:
        right = heading.startswith(">")
        empty.add_column(
            heading.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=not sys.stdout.isatty()
        )
    return empty


def show_plan(plan: Plan, as_json: bool) -> None:
    """Print a plan: its sites, those with equal decisions on one line; the reasons of dense ones; times and bounds."""
    if as_json:
        print(plan.to_json(), end="")
        return
    out = console()
    out.print(f"{plan.model} on {plan.target}", style="bold")
    out.print(plan.inputs, soft_wrap=True)
    out.print()
    sites = table(
        "sites", ">×", "layout", "pattern", ">density", ">TFLOP dense", ">planned", ">ms dense", ">planned", ">speed-up"
    )
    for name, group in grouped(plan.decisions):
        first, seconds = group[0], sum(d.seconds for d in group)
        dense_seconds = sum(d.dense_seconds for d in group)
        sites.add_row(
            name,
            str(len(group)),
            first.layout,
            summary(first),
            f"{first.density:.3f}",
            f"{sum(d.dense_flops for d in group) / 1e12:.2f}",
            f"{sum(d.flops for d in group) / 1e12:.2f}",
            f"{dense_seconds * 1e3:.1f}",
            f"{seconds * 1e3:.1f}",
            f"{dense_seconds / seconds:.2f}x",
        )
    out.print(sites)
    if plan.certificate is not None:
        out.print(f"\n{plan.certificate}", soft_wrap=True)
    if any(decision.is_gated for decision in plan.decisions):
        out.print(f"\npatterns depend on the noise level, {plan.noise}: densities and times are means over it")
    reasons = {name: group[0].reason for name, group in grouped(plan.decisions) if not group[0].is_sparse}
    if reasons:
        out.print("\nstays dense:")
        for name, reason in reasons.items():
            out.print(f"  {name}: {reason}", soft_wrap=True)
    out.print()
    out.print(totals(plan))
    layout, reach = plan.reach()
    if reach is not None:
        out.print(
            f"\nreach: after {reach} sites every grid token of {layout} can influence every other", soft_wrap=True
        )
    elif layout:
        out.print(f"\nwarning: some grid tokens of {layout} never influence each other directly", soft_wrap=True)


def summary(decision: Decision) -> str:
    """Return the pattern of a decision, or how many patterns it has where its heads differ."""
    count = len(decision.rules.patterns)
    by = " and noise level" if decision.is_gated else ""
    return f"{count} patterns, by head{by}" if count > 1 else decision.pattern


def totals(plan: Plan) -> Table:
    """Tabulate the predicted times of attention alone and of a whole step, with their bounds."""
    times = table("predicted", ">ms dense", ">ms planned", ">speed-up", ">bound", "the bound is")
    rest = plan.other_seconds
    rows = [
        ("attention", plan.dense_attention_seconds, plan.attention_seconds, plan.attention_speedup, plan.bound),
        (
            "whole step",
            plan.dense_attention_seconds + rest,
            plan.attention_seconds + rest,
            plan.step_speedup,
            plan.step_bound,
        ),
    ]
    explanations = ["dense over planned FLOPs", "Amdahl: attention for nothing; matrix products and attention only"]
    for (name, dense, planned, speedup, bound), text in zip(rows, explanations, strict=True):
        times.add_row(name, f"{dense * 1e3:.1f}", f"{planned * 1e3:.1f}", f"{speedup:.2f}x", f"{bound:.2f}x", text)
    return times


def grouped(decisions: Sequence[Decision]) -> list[tuple[str, list[Decision]]]:
    """Group equal decisions whose sites' names differ in numbers only, by the name with * for the numbers."""
    groups: dict[tuple[Any, ...], list[Decision]] = {}
    for decision in decisions:
        name = _any_block(decision.site)
        groups.setdefault((name, decision.layout, decision.pattern, decision.shape), []).append(decision)
    return [(key[0] if len(group) > 1 else group[0].site, group) for key, group in groups.items()]


def _any_block(site: str) -> str:
    """Return a site's name with * for the numbers of blocks: ``blocks.*.attn1`` of ``blocks.3.attn1``."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", site)


def site_named(plan: Plan, name: str) -> Decision:
    """Return the decision of a site by its name, or of the first whose name has numbers for *; raises UnknownName."""
    named = {decision.site: decision for decision in plan.decisions}
    shared = {key: group[0] for key, group in grouped(plan.decisions)}
    if name not in named and name not in shared:
        raise UnknownName("site", name, list(shared | named))
    return named.get(name) or shared[name]


def explain(
    decision: Decision,
    candidates: Sequence[Candidate],
    index_map: str | None,
    scores: Sequence[Mapping[str, Any]],
    as_json: bool,
) -> None:
    """Print one site: its decision, its candidates and why each was rejected, and its pattern around one query group.

    index_map: the source of its index map, printed last. scores: rows of evidence, one for each candidate.
    """
    if as_json:
        rows = [
            {
                "pattern": str(c.pattern),
                "density": c.density,
                "seconds": c.seconds,
                "rejected": str(c.rejected) if c.rejected else None,
            }
            for c in candidates
        ]
        site = {"site": decision.site, "pattern": decision.pattern, "reason": decision.reason, "candidates": rows}
        site |= {} if index_map is None else {"index_map": index_map}
        print_json(site | ({"evidence": list(scores)} if scores else {}))
        return
    out = console()
    out.print(decision.site, style="bold")
    out.print(f"{decision.layout}, {decision.heads} heads of {decision.head_dim}", soft_wrap=True)
    if decision.rules.pattern is None:
        out.print(f"{decision.reason}:", soft_wrap=True)
        for rule in decision.rules.rules:
            out.print(f"  {rule}", soft_wrap=True, markup=False)
        out.print()
    else:
        out.print(f"{decision.pattern}: {decision.reason}\n", soft_wrap=True)
    if candidates:
        candidate_table = table("candidate", ">density", ">ms", ">speed-up", "verdict")
        for c in candidates:
            verdict = "chosen" if c.rejected is None else str(c.rejected)
            speedup = f"{decision.dense_seconds / c.seconds:.2f}x"
            candidate_table.add_row(str(c.pattern), f"{c.density:.3f}", f"{c.seconds * 1e3:.2f}", speedup, verdict)
        out.print(candidate_table)
    if scores:
        score_table = table("evidence of", *(f">{name}" for name in list(scores[0])[1:]))
        for row in scores:
            name, *values = row.values()
            score_table.add_row(str(name), *(f"{value:.3f}" for value in values))
        out.print(score_table)
    if decision.is_sparse:
        from planner.cli.drawing import draw

        out.print()
        for line in draw(decision):
            out.print(line)
    if index_map is not None:
        print(f"\n{index_map}", end="")


def show_changes(changes: Sequence[Change], as_json: bool) -> None:
    """Print the fields in which two plans differ."""
    if as_json:
        print_json([{"where": c.where, "field": c.field, "a": c.a, "b": c.b} for c in changes])
        return
    out = console()
    if not changes:
        out.print("the plans are the same")
        return
    change_table = table("where", "field", "a", "b")
    for change in changes:
        change_table.add_row(change.where, change.field, str(change.a), str(change.b))
    out.print(change_table)


def show_models(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print the models of the catalogue."""
    if as_json:
        print_json(rows)
        return
    model_table = table("name", "diffusers class", ">parameters", ">size", ">frames", "weights")
    for row in rows:
        count, weights = row["parameters"], "shipped" if row["trained"] else ""
        parameters = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
        model_table.add_row(row["name"], row["class"], parameters, row["size"], str(row["frames"]), weights)
    console().print(model_table)
