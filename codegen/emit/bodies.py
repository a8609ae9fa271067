"""Emission: a kernel's specification becomes source that can be read, checked in, compiled and cached."""

from __future__ import annotations

from planner.codegen.emit.group_means import MeansBody
from planner.codegen.emit.hopper.body import PairsBody, Sm90Body
from planner.codegen.emit.triton import TritonBody
from planner.codegen.spec.body import BODIES
from planner.codegen.spec.emitted import Emitted
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.errors import NoKernel

for _body in (Sm90Body(), PairsBody(), TritonBody(), MeansBody()):
    BODIES.register(_body.name)(_body)


def emit(spec: KernelSpec) -> Emitted:
    """Emit the kernel of a spec; raises NoKernel, and what ``spec.verify`` raises."""
    reason = why_not(spec.config, spec.verify())
    if reason is not None:
        raise NoKernel(f"{spec.pattern} on {spec.layout} with {spec.config}", reason)
    return BODIES[spec.config.body].emit(spec)
