"""The table of docs/models.md: what is found in every class of diffusers. ``python -m zoo.table`` writes it."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import diffusers
import torch

import planner
from planner.capture.call import Call
from planner.capture.trace import Capture
from planner.plan.options import Options
from planner.plan.plan import Decision
from planner.plan.target import Target
from planner.provenance.propagate import Memory
from planner.runtime.model.compiled import Report, compile_model
from planner.stages import PlannedGraph, plan_capture
from zoo import FORCE, ZOO

GROUPS = {1: "5", 2: "3x5", 3: "1x3x5"}
"""Groups by the number of axes, which divide no grid of the zoo."""

BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"


def plan_of(model: torch.nn.Module, size: tuple[int, ...]) -> torch.nn.Module:
    """Compile a model with a sparse pattern wherever one goes."""
    pattern = "neighborhood{radius=1}" if len(size) == 1 else "crisscross"
    group = "2x3" if type(model).__name__ == "LatteTransformer3DModel" else GROUPS[len(size)]
    return planner.compile(model, pattern=pattern, group=group, **FORCE)


def covering(model: torch.nn.Module) -> torch.nn.Module:
    """Compile a model with a criss-cross that reads everything where one goes: a row of groups as long as the grid."""
    dense = Options(pattern="dense", min_speedup=0.0)

    def plan(capture: Capture, call: Call, memory: Memory, name: str) -> PlannedGraph:
        planned = plan_capture(dense, Target.named("cpu"), capture, call, memory, name)
        decisions = tuple(map(_covering, planned.plan.decisions))
        return replace(planned, plan=replace(planned.plan, decisions=decisions).verify())

    return compile_model(model, plan, "eager", fullgraph=False)


def _covering(decision: Decision) -> Decision:
    layout = decision.own_grid
    if layout is None or len(layout.grid.sizes) < 2 or not decision.reason.startswith("pattern=dense"):
        return decision
    group = "x".join(map(str, (*layout.grid.sizes[:-1], min(3, layout.grid.sizes[-1]))))
    return replace(decision, pattern=f"crisscross{{axes=lines,group={group}}}", density=1.0, reason="to be tested")


def row(name: str, report: Report) -> str:
    """Write a line of the table."""
    (plan,) = report.plans
    sparse = [decision for decision in plan.decisions if decision.is_sparse]
    layouts = dict.fromkeys(decision.layout for decision in sparse)
    dense = dict[str, list[str]]()
    for decision in plan.decisions:
        if not decision.is_sparse:
            dense.setdefault(_reason(decision), []).append(decision.site)
    for site, reason in report.unplanned[0].items():
        dense.setdefault(reason, []).append(site)
    reasons = [f"{', '.join(dict.fromkeys(map(_any_block, sites)))}: {reason}" for reason, sites in dense.items()]
    sites = len(plan.decisions) + len(report.unplanned[0])
    if not sites:
        reasons = ["no call of scaled_dot_product_attention"]
    found = "<br>".join(layout.replace("|", "\\|") for layout in layouts)
    return f"| {name} | {len(sparse)} of {sites} | {found} | {'<br>'.join(reasons).replace('|', chr(92) + '|')} |"


def _any_block(site: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", site.partition("#")[0])


def _reason(decision: Decision) -> str:
    return re.sub(r": text, or a packed.*", "", decision.reason)


def table() -> list[str]:
    """All lines."""
    lines = ["| class | sparse sites | layouts | what stays dense, and why |", "| --- | --- | --- | --- |"]
    for name, member in sorted(ZOO.items()):
        torch._dynamo.reset()
        model, inputs = member.case(member.sizes[0])
        compiled = plan_of(model, member.sizes[0])
        compiled(**inputs)
        lines.append(row(name, planner.report(compiled)))
    return lines


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    path = Path("docs/models.md")
    before, rest = path.read_text().split(BEGIN)
    with torch.no_grad():
        path.write_text("\n".join([before + BEGIN, "", *table(), "", END + rest.split(END)[1]]))
