"""Boxes of tokens: what tiles are made of, powers of two along every axis.

A column of such a tile finds its token by shifts, and TMA, on SM90 and later, can load it from where the model has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from planner.codegen.tiling.sympy_source import quotient

Axes = tuple[tuple[int, int], ...]
"""(size, stride) in tokens along each axis of a view, slow to fast."""


@dataclass(frozen=True)
class View:
    """Tokens of the sequence seen as a box: the first one's index, and each axis."""

    origin: int
    axes: Axes


def power_boxes(axes: int, tokens: int) -> Iterator[tuple[int, ...]]:
    """Yield all boxes of so many tokens whose sides are powers of two."""
    powers = [2**k for k in range(tokens.bit_length())]
    for sides in itertools.product(powers, repeat=axes - 1):
        last = tokens // math.prod(sides)
        if last and last * math.prod(sides) == tokens:
            yield (*sides, last)


def mixed_radix(number: sympy.Expr, counts: Sequence[Any]) -> tuple[sympy.Expr, ...]:
    """Return the digits of a number below the product of the counts, the last fastest."""
    digits = list[sympy.Expr]()
    for axis, count in enumerate(counts):
        digit = quotient(number, math.prod(counts[axis + 1 :]))
        digits.append(sympy.Integer(0) if count == 1 else sympy.Mod(digit, count) if axis else digit)
    return tuple(digits)


def with_side(sizes: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    """Return sizes with another one along an axis."""
    return (*sizes[:axis], size, *sizes[axis + 1 :])
