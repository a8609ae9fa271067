"""Source of kernels: what several bodies print alike, and how templates are filled in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import sympy

from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.tiling.group_means import MeanTiles
from planner.codegen.tiling.sympy_source import Names, source_of
from planner.patterns.axis_set import Range
from planner.patterns.density import attended_pairs

TEMPLATES = Path(__file__).parents[1] / "templates"


def header(spec: KernelSpec) -> list[str]:
    """List what a reader of the source should know first."""
    program = spec.program
    shares = [attended_pairs(pattern, spec.token_layout) / spec.queries**2 for pattern in spec.patterns]
    share = ", ".join(f"{each:.2%}" for each in shares) + (" in turn" if len(shares) > 1 else "")
    read = f"{share} of the pairs are attended"
    if program.listed is not None:
        read = f"lists name up to {program.listed.longest} groups of keys, {share} of the pairs at most"
    lines = [
        f"batch {spec.batch}, {spec.heads} heads ({spec.kv_heads} of keys) of {spec.head_dim} channels, {spec.dtype}",
        f"config {spec.config}, {spec.num_sms} SMs",
        f"{read}; a query tile is a box of {program.queries.box} tokens",
    ]
    if program.coords:
        whose = "pair of groups" if spec.paired else "group"
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
    """Write the test that a coordinate lies in one of some ranges; nothing where it always does."""
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
    """Indent lines of source by so many levels: the template filter ``code``."""
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
