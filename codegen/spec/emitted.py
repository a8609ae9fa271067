"""What emission returns: the source of a kernel, and how to call it."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.codegen.spec.dtypes import Dtypes
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.tiling.boxes import View


@dataclass(frozen=True)
class Argument:
    """A run-time argument of a kernel by name, with its type as Triton spells it.

    divisor: what its value is a multiple of (the address, of a pointer).
    """

    name: str
    signature: str
    divisor: int = 1


TABLE = [Argument("table", "*i32"), Argument("noise", "*fp32"), Argument("levels", "*fp32"), Argument("ranges", "i32")]
"""Arguments of a kernel with a head table: its row is that of how many of ``ranges - 1`` ascending levels lie below the
noise."""

WORKSPACE = [Argument("partials", "*fp32", 16), Argument("partial_lse", "*fp32"), Argument("arrivals", "*i32")]
"""Arguments of a kernel that splits the keys of global queries: partials of their rows, and how many are stored."""

WORK_COUNTER = Argument("work_counter", "*i32")
"""Argument of a kernel whose CTAs take work tiles as they come: a counter of those that are taken, and after it a flag
for each query tile of the grid that has to be done again."""


def pointer_argument(name: str, dtypes: Dtypes) -> Argument:
    """Return the argument for a tensor, which begins at a multiple of 16 bytes."""
    return Argument(name, dtypes.of(name).pointer, 16)


def stride_argument(name: str, dtypes: Dtypes) -> Argument:
    """Return the argument for a stride (``q_head``), in elements, which is a multiple of 16 bytes."""
    return Argument(name, "i64", 16 // dtypes.of(name).bytes)


@dataclass(frozen=True)
class ViewArgument(Argument):
    """A tensor map: a tensor (``q``, ``k_means_16x16``, …) seen through a view, and the box moved at a time.

    channels: of the box. stem: what the view is called, whatever the tensor.
    """

    tensor: str = field(kw_only=True)
    view: View = field(kw_only=True)
    box: tuple[int, ...] = field(kw_only=True)
    channels: int = field(kw_only=True)
    stem: str = field(kw_only=True)


@dataclass(frozen=True)
class Emitted:
    """A kernel's source, and what a launch needs to know.

    grid: CTAs. partial_rows: rows of float32 workspace; with a head table they depend on it. arrivals: counters.
    retry_flags: flags of tiles that follow the counter of ``WORK_COUNTER``; all must be zero before the launch and are
    zero after it. waits: whether it waits itself for what comes before on its stream, and may be started beside that.
    warps, maxnreg: compile options.
    """

    spec: KernelSpec
    source: str
    arguments: tuple[Argument, ...]
    grid: int
    partial_rows: int
    arrivals: int
    retry_flags: int
    waits: bool
    warps: int
    maxnreg: int | None

    @property
    def entry(self) -> str:
        """Name of the kernel's function."""
        return "means" if self.spec.only_means else "attention"
