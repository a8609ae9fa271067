"""Emission: a kernel's specification becomes source that can be read, checked in, compiled and cached."""

from __future__ import annotations

from collections.abc import Callable

from planner.codegen.emit.group_means import emit_means
from planner.codegen.emit.hopper.emit import emit_hopper
from planner.codegen.emit.kernel_source import Emitted
from planner.codegen.emit.triton import emit_triton
from planner.codegen.spec.config import Body, why_not
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.errors import NoKernel

_BODIES: dict[Body, Callable[[KernelSpec], Emitted]] = {
    "sm90": emit_hopper,
    "pairs": emit_hopper,
    "triton": emit_triton,
    "means": emit_means,
}


def emit(spec: KernelSpec) -> Emitted:
    """The kernel of a spec; raises NoKernel, and what ``spec.verify`` raises."""
    reason = why_not(spec.config, spec.verify())
    if reason is not None:
        raise NoKernel(f"{spec.pattern} on {spec.layout} with {spec.config}", reason)
    return _BODIES[spec.config.body](spec)
