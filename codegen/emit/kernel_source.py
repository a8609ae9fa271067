"""What emission returns: source for a reader and for the compiler, and how to call it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import sympy

from planner.codegen.spec.dtypes import Dtypes
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.tiling.boxes import View
from planner.codegen.tiling.group_means import MeanTiles
from planner.codegen.tiling.sympy_source import Names, source_of
from planner.patterns.axis_set import Range
from planner.patterns.density import attended_pairs

TEMPLATES = Path(__file__).parents[1] / "templates"


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


def header(spec: KernelSpec) -> list[str]:
    """List what a reader of the source should know first."""
    program = spec.program
    shares = [attended_pairs(pattern, spec.token_layout) / spec.queries**2 for pattern in spec.patterns]
    share = ", ".join(f"{each:.2%}" for each in shares) + (" in turn" if len(shares) > 1 else "")
    lines = [
        f"batch {spec.batch}, {spec.heads} heads ({spec.kv_heads} of keys) of {spec.head_dim} channels, {spec.dtype}",
        f"config {spec.config}, {spec.num_sms} SMs",
        f"{share} of the pairs are attended; a query tile is a box of {program.queries.box} tokens",
    ]
    if program.coords:
        whose = "pair of groups" if spec.config.body == "pairs" else "group"
        lines.append(
            f"c0, c1, … are the coordinates of the query's {whose}, slow to fast; i counts the key tiles it reads"
        )
    return lines


def by_pattern(bodies: Sequence[list[str] | None], first: int = 0) -> Iterator[str]:
    """Yield lines for each pattern, found by ``which`` in a tree of tests; None for patterns that do not come here.

    Lines that are the same for all patterns stand alone.
    """
    known = [body for body in bodies if body is not None]
    if all(body == known[0] for body in known):
        yield from known[0] if known else []
        return
    half = len(bodies) // 2
    sides = [bodies[:half], bodies[half:]]
    if any(all(body is None for body in side) for side in sides):
        side = sides[0] if any(body is not None for body in sides[0]) else sides[1]
        yield from by_pattern(side, first if side is sides[0] else first + half)
        return
    yield f"if which < {first + half}:"
    yield from indented(by_pattern(sides[0], first))
    yield "else:"
    yield from indented(by_pattern(sides[1], first + half))


def reads_groups(means: MeanTiles, coords: Sequence[sympy.Symbol], number: str) -> Iterator[str]:
    """Yield lines for ``reads``: whether the group at coords reads the tokens of groups, whose numbers are given."""
    read = means.read(coords)
    edges = Names([end for box in read for ranges in box for along in ranges for end in along], "near")
    yield from edges.lines()
    digits = means.digits(sympy.Symbol(number, integer=True, nonnegative=True))
    yield from (f"g{axis} = {source_of(digit)}" for axis, digit in enumerate(digits))
    boxes = list[str]()
    for box in read:
        along = [_inside(f"g{axis}", ranges, means.groups[axis], edges) for axis, ranges in enumerate(box)]
        boxes.append(" & ".join(filter(None, along)) or f"({number} >= 0)")
    yield f"reads = {' | '.join(f'({box})' for box in boxes) if len(boxes) > 1 else boxes[0]}"


def _inside(digit: str, ranges: Sequence[Range], groups: int, edges: Names) -> str:
    """Whether a coordinate lies in one of some ranges; nothing where it always does."""
    tests = list[str]()
    for first, stop in ranges:
        ends = [f"({digit} >= {edges.source_of(first)})"] * (first != 0)
        ends += [f"({digit} < {edges.source_of(stop)})"] * (stop != groups)
        if not ends:
            return ""
        tests.append(" & ".join(ends))
    return tests[0] if len(tests) == 1 else f"({' | '.join(f'({test})' for test in tests)})"


def box_tokens(
    starts: Sequence[str],
    box: Sequence[int],
    origin: int,
    axes: Sequence[tuple[int, int]],
    counter: str,
    name: str,
) -> Iterator[str]:
    """Yield lines for coordinates and sequence indices of the tokens of a box, which a counter runs over."""
    letter = "q" if counter == "row" else "x"
    places = list[str]()
    for axis, (start, (_, stride)) in enumerate(zip(starts, axes, strict=True)):
        inner = math.prod(box[axis + 1 :])
        digit = counter if inner == 1 else f"{counter} // {inner}"
        digit = digit if axis == 0 else f"{digit} % {box[axis]}"
        yield f"{letter}{axis} = {start} + {digit}"
        places.append(f"{letter}{axis}" if stride == 1 else f"{letter}{axis} * {stride}")
    yield f"{name} = {' + '.join([str(origin)] * bool(origin) + places)}"


def indented(lines: Iterable[str]) -> list[str]:
    """Return lines one level in."""
    return [f"    {line}" for line in lines]


def _as_code(lines: Iterable[str], level: int = 1) -> str:
    """The template filter ``code``: lines of source, so many levels in."""
    return "\n".join("    " * level + line for line in lines)


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _as_code
    return environment


def render(template: str, **values: Any) -> str:
    """Return a template filled in; a name that is missing is an error."""
    return str(_environment().get_template(template).render(**values))
