"""Emission for Hopper: source, arguments, and what a launch needs to know."""

from __future__ import annotations

from planner.codegen.emit.hopper.arguments import arguments
from planner.codegen.emit.hopper.view import HopperKernel
from planner.codegen.emit.kernel_source import render
from planner.codegen.spec.emitted import Emitted
from planner.codegen.spec.kernel_spec import KernelSpec


def emit_hopper(spec: KernelSpec) -> Emitted:
    """Emit the kernel of a spec whose body is ``sm90`` or ``pairs``."""
    kernel = HopperKernel(spec)
    schedule, has_fix_up = kernel.schedule, kernel.has_fix_up
    partials = schedule.row_blocks * schedule.max_partials
    return Emitted(
        spec=spec,
        source=render("hopper.py.jinja", k=kernel),
        arguments=arguments(kernel),
        grid=schedule.num_sms,
        partial_rows=partials * spec.config.block_m if has_fix_up and not spec.has_head_table else 0,
        arrivals=kernel.warpgroups * schedule.row_blocks if has_fix_up else 0,
        retry_flags=schedule.grid_tiles,
        waits=True,
        warps=4,
        maxnreg=kernel.maxnreg,
    )
