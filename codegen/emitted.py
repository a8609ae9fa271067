"""What emission returns: source for a reader and for the compiler, and how to call it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from codegen.spec import KernelSpec
from codegen.tiles import View
from planner.density import attended_pairs

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Argument:
    """A run-time argument of a kernel by name, with its type as Triton spells it.

    divisor: what its value is a multiple of (the address, of a pointer).
    """

    name: str
    signature: str
    divisor: int = 1


GATE = [Argument("noise", "*fp32"), Argument("threshold", "fp32"), Argument("above", "i32")]
"""Arguments of a gated kernel: it works where the noise is at most the threshold, or, if ``above``, where it is not."""


@dataclass(frozen=True)
class ViewArgument(Argument):
    """A tensor map: a tensor (``q``, ``k``, ``v`` or ``o``) seen through a view, and the box moved at a time.

    stem: what the view is called, whatever the tensor.
    """

    tensor: str = field(kw_only=True)
    view: View = field(kw_only=True)
    box: tuple[int, ...] = field(kw_only=True)
    stem: str = field(kw_only=True)


@dataclass(frozen=True)
class Emitted:
    """A kernel's source, and what a launch needs to know.

    grid: programs. part_rows, arrivals: rows of float32 workspace, and counters that must be zero before the launch
    and are zero after it. warps, maxnreg: compile options.
    """

    spec: KernelSpec
    source: str
    arguments: tuple[Argument, ...]
    grid: int
    part_rows: int
    arrivals: int
    warps: int
    maxnreg: int | None


def header(spec: KernelSpec) -> list[str]:
    """What a reader of the source should know first."""
    share = attended_pairs(spec.parsed_pattern, spec.token_layout) / spec.queries**2
    program = spec.program
    lines = [
        f"batch {spec.batch}, {spec.heads} heads ({spec.kv_heads} of keys) of {spec.head_dim} channels, {spec.dtype}",
        f"config {spec.config}, {spec.processors} multiprocessors",
        f"{share:.2%} of the pairs are attended; a query tile is a box of {program.queries.box} tokens",
    ]
    if program.coords:
        lines.append(
            "c0, c1, … are the coordinates of the query's group, slow to fast; i counts the key tiles it reads"
        )
    return lines


def indented(lines: Iterable[str]) -> list[str]:
    """Lines one level in."""
    return [f"    {line}" for line in lines]


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """Fill in a template; a name that is missing is an error."""
    return str(_environment().get_template(template).render(**values))
