"""Printing closed forms as source: exact integer arithmetic, the same text for Python, Triton and Gluon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import sympy
from sympy.printing.pycode import PythonCodePrinter


class Quotient(sympy.Function):
    """a // b of two whole numbers that are not negative; stays as it is written.

    Compiled integer division rounds towards zero where Python's rounds down, so a sum whose terms are negative may not
    be pulled apart as sympy does with ``floor``.
    """

    nargs = 2
    is_integer = True

    @classmethod
    def eval(cls, *args: Any) -> Any:
        """Divide at once what divides term by term."""
        a, b = args
        if a.is_Integer and b.is_Integer:
            return a // b
        divided = sympy.expand(a / b)
        is_whole = all(coefficient.is_Integer for coefficient in divided.as_coefficients_dict().values())
        return divided if b.is_Integer and is_whole else None


def quotient(a: Any, b: Any) -> sympy.Expr:
    """Return a // b, both whole and not negative."""
    return cast(sympy.Expr, Quotient(sympy.sympify(a), sympy.sympify(b)))


class _IntegerPrinter(PythonCodePrinter):
    """Prints floor(a/b), and whole numbers written as a/b, as a // b, exact at any size; brackets every // and %."""

    def _print_floor(self, expr: sympy.Expr) -> str:
        numerator, denominator = sympy.fraction(sympy.together(expr.args[0]))
        return f"({self._operand(numerator)} // {self._operand(denominator)})"

    def _print_Mod(self, expr: sympy.Expr) -> str:  # noqa: N802, sympy finds it by the class's name
        return f"({self._operand(expr.args[0])} % {self._operand(expr.args[1])})"

    def _print_Quotient(self, expr: sympy.Expr) -> str:  # noqa: N802
        return f"({self._operand(expr.args[0])} // {self._operand(expr.args[1])})"

    def _print_Add(self, expr: sympy.Expr, order: Any = None) -> str:  # noqa: N802
        return self._exact(expr) or str(super()._print_Add(expr, order))

    def _print_Mul(self, expr: sympy.Expr) -> str:  # noqa: N802
        return self._exact(expr) or str(super()._print_Mul(expr))

    def _exact(self, expr: sympy.Expr) -> str | None:
        """Whole numbers written with fractions, a/2 + b/2, over their common denominator, None if there are none."""
        numerator, denominator = sympy.fraction(sympy.together(expr))
        return None if denominator == 1 else f"({self._operand(numerator)} // {self._operand(denominator)})"

    def _operand(self, expr: sympy.Basic) -> str:
        text = str(self._print(expr))
        return text if expr.is_Atom or isinstance(expr, sympy.floor | sympy.Mod | Quotient) else f"({text})"


def source_of(expr: Any) -> str:
    """Return an int or a sympy expression as source."""
    return _without_doubled_brackets(str(_IntegerPrinter().doprint(sympy.sympify(expr))))


class Names:
    """Names for the minima and maxima that expressions share: they are computed once, and the rest reads as arithmetic.

    names: each outermost minimum or maximum with its symbol, in order of appearance.
    """

    def __init__(self, expressions: Iterable[Any], prefix: str) -> None:
        found = dict[sympy.Expr, sympy.Symbol]()
        for expression in expressions:
            walk = sympy.preorder_traversal(sympy.sympify(expression))
            for part in walk:
                if isinstance(part, sympy.Min | sympy.Max):
                    found.setdefault(part, sympy.Symbol(f"{prefix}{len(found)}", integer=True, nonnegative=True))
                    walk.skip()
        self.names = found

    def lines(self) -> Iterator[str]:
        """Yield an assignment for each name."""
        return (f"{symbol} = {source_of(expr)}" for expr, symbol in self.names.items())

    def source_of(self, expr: Any) -> str:
        """Return an expression as source, with the names in it."""
        return source_of(sympy.sympify(expr).xreplace(self.names))


def _without_doubled_brackets(text: str) -> str:
    """((x)) is (x), and brackets around all of a text are dropped."""
    opened, pairs = list[int](), dict[int, int]()
    for at, character in enumerate(text):
        if character == "(":
            opened.append(at)
        elif character == ")":
            pairs[opened.pop()] = at
    doubled = [at for at, end in pairs.items() if pairs.get(at + 1) == end - 1]
    if pairs.get(0) == len(text) - 1:
        doubled.append(0)
    dropped = {*doubled, *(pairs[at] for at in doubled)}
    return "".join(character for at, character in enumerate(text) if at not in dropped)
