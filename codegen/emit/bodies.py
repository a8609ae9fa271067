"""Emission of any kernel: the body that its config names turns the specification into source."""

from __future__ import annotations

from planner.codegen.spec.body import BODIES
from planner.codegen.spec.emitted import Emitted
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.errors import NoKernel


def emit(spec: KernelSpec) -> Emitted:
    """Emit the kernel of a spec; raises NoKernel, and what ``spec.verify`` raises."""
    reason = why_not(spec.config, spec.verify())
    if reason is not None:
        raise NoKernel(f"{spec.pattern} on {spec.layout} with {spec.config}", reason)
    return BODIES[spec.config.body].emit(spec)
