"""Feasibility: which kernel configs can serve which problems, and why others cannot."""

from __future__ import annotations

from planner.codegen.spec.body import BODIES
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.problem import Problem

SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
"""Shared memory that one CTA may use, by compute capability (CUDA C++ Programming Guide, table 'Technical
Specifications per Compute Capability')."""


def why_not(config: KernelConfig, problem: Problem) -> str | None:
    """Say why a kernel of this config cannot serve a problem on its target; None if it can."""
    sides = (config.block_m, config.block_n)
    if any(side & (side - 1) or not 16 <= side <= 256 for side in sides):
        return f"tiles of {config.block_m} by {config.block_n} are not powers of two between 16 and 256"
    if config.warps not in (1, 2, 4, 8, 16) or not 1 <= config.stages <= 16:
        return f"{config.warps} warps and {config.stages} stages are not possible"
    if problem.arch not in SHARED_KIB:
        return f"nothing is known of compute capability {problem.arch}"
    if config.body not in BODIES:
        return f"there is no kernel body {config.body!r}, but {', '.join(BODIES)}"
    body = BODIES[config.body]
    if problem.only_means != body.computes_means:
        return f"a kernel with the body {config.body} computes {'attention' if problem.only_means else 'means'}"
    if problem.has_key_lists and not body.reads_lists:
        return f"a kernel with the body {config.body} reads no lists of keys"
    if problem.has_key_lists and (len(problem.patterns) > 1 or problem.mean_rows):
        return "lists of keys are of one pattern alone, and do not say which means to leave out"
    reason = body.why_not(config, problem)
    needed, has = body.shared_bytes(config, problem), SHARED_KIB[problem.arch] * 1024
    if reason is None and needed > has:
        return f"it needs {needed} bytes of shared memory and SM{problem.arch} has {has}"
    return reason
