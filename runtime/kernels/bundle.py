"""Bundles: the kernels of a plan, compiled ahead of time on any machine, loaded on a GPU machine without a compiler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.launch_plan import launches
from planner.codegen.spec.problem import Problem, make_problem
from planner.errors import BadBundle, BadOption
from planner.plan.atomic_write import replacing
from planner.plan.plan import Decision, Plan
from planner.plan.target import TARGETS, Target
from planner.runtime.kernels.autotune import configured
from planner.runtime.kernels.cache import SUFFIX, build, toolchain
from planner.runtime.kernels.kernel_file import KernelFile
from planner.runtime.kernels.private_folder import why_unsafe


@dataclass(frozen=True)
class Bundle:
    """Compiled kernels by the problems that they solve."""

    folder: Path
    kernels: dict[Problem, KernelFile]

    def get(self, problem: Problem) -> KernelFile | None:
        """Return the kernel for a problem, whatever its config; None if there is none."""
        return self.kernels.get(problem)

    @staticmethod
    def open(folder: Path) -> Bundle:
        """Read a bundle that this user or root made.

        Raises BadBundle if it is none, is damaged, was made by other code than this, or others could have written it.
        """
        found = dict[Problem, KernelFile]()
        paths = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
        for path in [folder.resolve(), *paths] if paths else []:
            fault = why_unsafe(path, trusted=(0,))
            if fault is not None:
                raise BadBundle(str(path), fault)
        for path in paths:
            try:
                kernel = KernelFile.from_bytes(path.read_bytes())
            except (OSError, ValueError) as error:
                raise BadBundle(str(path), str(error)) from None
            theirs, ours = kernel.toolchain, toolchain()
            if (theirs.get("planner"), theirs.get("code")) != (ours["planner"], ours["code"]):
                raise BadBundle(str(path), f"planner {theirs.get('planner')} of other code made it")
            found[kernel.emitted.spec.problem] = kernel
        if not found:
            raise BadBundle(str(folder), "it holds no kernel")
        return Bundle(folder, found)


def specs_of(plan: Plan, target: Target, key_mask: bool = False) -> list[KernelSpec]:
    """List the kernels that a plan's sparse sites need on a target, each once; raises BadOption and NoKernel.

    key_mask: for calls that pass a mask over keys.
    """
    if not target.arch:
        kernels = ", ".join(sorted(name for name, each in TARGETS.items() if each.arch))
        raise BadOption("target", target.name, f"a GPU that kernels are emitted for: {kernels}")
    sparse = [decision for decision in plan.decisions if decision.is_sparse]
    problems = {problem for decision in sparse for problem in problems_of(plan, decision, target, key_mask)}
    return sorted(map(configured, problems), key=lambda spec: spec.name)


def problems_of(plan: Plan, decision: Decision, target: Target, key_mask: bool = False) -> list[Problem]:
    """List the problems that a sparse site of a plan poses to kernels."""
    site = make_problem(
        decision.layout,
        "dense",
        target,
        batch=decision.batch,
        heads=decision.heads,
        kv_heads=decision.kv_heads,
        keys=decision.keys,
        head_dim=decision.head_dim,
        dtype=decision.dtype,
        key_mask=key_mask,
    )
    asked = launches(site, decision.rules, plan.kernel_patterns.get(decision.layout, ""))
    return [problem for launch in asked for problem in launch.problems]


def write_bundle(specs: Iterable[KernelSpec], folder: Path) -> Iterable[Path]:
    """Compile kernels into a folder, yielding each file as it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec in specs:
        path = folder / f"{spec.name}{SUFFIX}"
        content = build(spec).to_bytes()
        with replacing(path) as scratch:
            scratch.write_bytes(content)
        yield path
