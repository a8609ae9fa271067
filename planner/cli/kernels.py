"""The commands about kernels: those of a plan, their source, and the cache."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import typer

from planner.cli import render
from planner.codegen.emit.bodies import emit
from planner.errors import BadOption, MissingDependency, UnknownName
from planner.plan.plan import Plan
from planner.plan.target import Target
from planner.runtime.kernels.autotune import configured
from planner.runtime.kernels.autotune import tune as tune_problem
from planner.runtime.kernels.bundle import problems_of, specs_of, write_bundle
from planner.runtime.kernels.cache import Cache
from planner.runtime.kernels.sass import inspect


def show_kernels(plan: Plan, target: str, key_mask: bool, as_json: bool) -> None:
    """Compile each kernel that a plan needs, and tabulate its registers, memory and instructions."""
    rows = list[dict[str, Any]]()
    for spec in specs_of(plan, Target.named(target), key_mask):
        with render.progress(f"compiling {spec.name}"):
            rows.append({"kernel": spec.name, "config": str(spec.config), **asdict(inspect(spec))})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = render.table("kernel", "config", ">registers", ">spilled bytes", ">shared KiB", ">programs", "instructions")
    for row in rows:
        instructions = ", ".join(f"{name} {count}" for name, count in (*row["tensor"], *row["copies"]))
        table.add_row(
            row["kernel"],
            row["config"],
            str(row["registers"]),
            str(row["spills"]),
            f"{row['shared'] / 1024:.0f}",
            str(row["programs"]),
            instructions,
        )
    render.console().print(table)


def show_source(plan: Plan, site: str, target: str, key_mask: bool) -> None:
    """Print the source of a site's kernels; raises UnknownName and BadOption."""
    sparse = {decision.site: decision for decision in plan.decisions if decision.is_sparse}
    if site not in sparse:
        raise UnknownName("sparse site", site, sparse)
    gpu = Target.named(target)
    specs_of(plan, gpu, key_mask)  # raises BadOption for a target without kernels
    for problem in problems_of(plan, sparse[site], gpu, key_mask):
        typer.echo(emit(configured(problem)).source, nl=False)


def build(plan: Plan, folder: Path, target: str, key_mask: bool) -> None:
    """Compile a plan's kernels into a folder; raises BadOption for a plan without a sparse site."""
    specs = specs_of(plan, Target.named(target), key_mask)
    if not specs:
        raise BadOption("plan", plan.model, "a plan with a sparse site; every site of this one is dense")
    with render.progress(f"compiling {len(specs)} kernels for {target}"):
        written = list(write_bundle(specs, folder))
    for path in written:
        typer.echo(f"{path}  {path.stat().st_size / 1024:.0f} KiB")
    typer.echo(f"set PLANNER_BUNDLE={folder.resolve()} where they are to run")


def autotune(plan: Plan, seconds: float, key_mask: bool, as_json: bool) -> None:
    """Time the candidates of each of a plan's kernels on this machine's GPU; raises MissingDependency."""
    if not torch.cuda.is_available():
        raise MissingDependency("a CUDA device", "tuning", "Tune on the machine that runs the model.")
    device = torch.device("cuda", torch.cuda.current_device())
    rows = list[dict[str, Any]]()
    for spec in specs_of(plan, Target.of_device(device), key_mask):
        with render.progress(f"timing {spec.name}"):
            trials = tune_problem(spec.problem, device, seconds)
        rows += [{"kernel": spec.name, "config": str(t.config), "ms": round(t.milliseconds, 4)} for t in trials]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = render.table("kernel", "config", ">ms")
    for row in rows:
        table.add_row(row["kernel"], row["config"], f"{row['ms']:.4f}")
    render.console().print(table)


def list_cache(as_json: bool) -> None:
    """Tabulate the cache, the kernel used last first."""
    cache = Cache()
    entries = cache.entries()[::-1]
    if as_json:
        rows = [{"path": str(entry.path), "bytes": entry.bytes, "used": entry.used} for entry in entries]
        typer.echo(json.dumps(rows, indent=1))
        return
    table = render.table("kernel", ">KiB", "used")
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        table.add_row(entry.path.name, f"{entry.bytes / 1024:.0f}", used)
    render.console().print(table)
    total = sum(entry.bytes for entry in entries) / 2**20
    typer.echo(f"{len(entries)} kernels, {total:.1f} of {cache.limit / 2**20:.0f} MiB, in {cache.directory}")


def verify_cache() -> int:
    """Print the fault of each damaged entry of the cache; return how many there are."""
    cache = Cache()
    faults = [(entry, cache.fault(entry)) for entry in cache.entries()]
    for entry, fault in faults:
        if fault is not None:
            typer.echo(f"{entry.path}: {fault}")
    wrong = sum(fault is not None for _, fault in faults)
    typer.echo(f"{len(faults) - wrong} kernels are sound, {wrong} are not")
    return wrong
