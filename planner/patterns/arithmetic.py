"""One formula, three kinds of numbers: closed forms are written once and read ints, tensors or sympy expressions."""

from __future__ import annotations

from typing import Any, Protocol

import sympy
import torch

Number = Any
"""An int, an int64 tensor, or a sympy expression; one formula takes only one kind."""


class Arithmetic(Protocol):
    """The operations beyond + - * that a closed form may use."""

    def minimum(self, a: Number, b: Number) -> Number:
        """Return the lesser of two."""
        ...

    def maximum(self, a: Number, b: Number) -> Number:
        """Return the greater of two."""
        ...

    def ceil_div(self, a: Number, b: Number) -> Number:
        """Return a / b, rounded up."""
        ...

    def at_least(self, a: Number, b: Number) -> Number:
        """Return 1 where a >= b, else 0."""
        ...


class _Ints:
    def minimum(self, a: int, b: int) -> int:
        return min(a, b)

    def maximum(self, a: int, b: int) -> int:
        return max(a, b)

    def ceil_div(self, a: int, b: int) -> int:
        return -(-a // b)

    def at_least(self, a: int, b: int) -> int:
        return int(a >= b)


class _Tensors:
    def minimum(self, a: Number, b: Number) -> torch.Tensor:
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))

    def maximum(self, a: Number, b: Number) -> torch.Tensor:
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))

    def ceil_div(self, a: Number, b: Number) -> Number:
        return -(-a // b)

    def at_least(self, a: Number, b: Number) -> torch.Tensor:
        return (torch.as_tensor(a) >= b).long()


class _Symbols:
    def minimum(self, a: Number, b: Number) -> sympy.Expr:
        return sympy.Min(a, b)

    def maximum(self, a: Number, b: Number) -> sympy.Expr:
        return sympy.Max(a, b)

    def ceil_div(self, a: Number, b: Number) -> sympy.Expr:
        return sympy.ceiling(sympy.sympify(a) / b)

    def at_least(self, a: Number, b: Number) -> sympy.Expr:
        return sympy.Piecewise((1, sympy.Ge(a, b)), (0, True))


INTS: Arithmetic = _Ints()
TENSORS: Arithmetic = _Tensors()
SYMBOLS: Arithmetic = _Symbols()
