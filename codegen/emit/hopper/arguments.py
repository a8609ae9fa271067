"""The arguments of a Hopper kernel, in order."""

from __future__ import annotations

from planner.codegen.emit.hopper.facts import HopperFacts
from planner.codegen.spec.emitted import TABLE, WORK_COUNTER, WORKSPACE, Argument
from planner.codegen.tiling.key_source import LISTS


def arguments(facts: HopperFacts) -> tuple[Argument, ...]:
    """List the arguments of a kernel."""
    spec = facts.spec
    found: list[Argument] = [*facts.views, *(Argument(f"{letter}_last", "i32") for letter in "qkvo")]
    found += [Argument("lse", "*fp32")] * spec.returns_lse + [Argument("key_mask", "*i1")] * spec.key_mask
    found += [Argument(LISTS, "*i32")] * spec.has_key_lists
    found += [Argument("mean_bias", "*fp32")] * facts.has_means
    found += TABLE * facts.has_head_table + WORKSPACE * facts.has_fix_up
    return (*found, WORK_COUNTER, Argument("scale_log2", "fp32"))
