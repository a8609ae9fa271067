"""What a query group reads along one axis, in closed form.

A pattern is a disjoint union of boxes, and a box is one axis set per axis. All that is derived from a pattern
(its list of key groups, its density, its index map, its kernel) follows from the closed forms here.
In all of them c is the query group's coordinate, G the number of groups along the axis, n its tokens and g the group's.
``front_pad``: tokens that the first group lacks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from planner.patterns.arithmetic import INTS, Arithmetic, Number

Edge = Literal["clamp", "clip"]
"""At the grid's edge a window is shifted inside (``clamp``, constant work) or cut off (``clip``)."""


Range = tuple[Number, Number]
"""(first, stop) groups along an axis."""


class AxisSet(ABC):
    """The groups along one axis that a query group at coordinate c reads."""

    @property
    def reads_evenly(self) -> bool:
        """Whether every query group reads equally many groups."""
        return True

    @abstractmethod
    def count(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        """Count the groups that are read."""

    @abstractmethod
    def item(self, i: Number, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        """Return the coordinate of the i-th group read, ascending in i."""

    @abstractmethod
    def ranges(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> tuple[Range, ...]:
        """Return the same groups as disjoint ranges (first, stop), of which some may be empty."""

    def pairs(self, n: Number, g: Number, arithmetic: Arithmetic = INTS, front_pad: int = 0) -> Number:
        """Count (query token, key token) pairs along the axis, summed over all query groups.

        With a front pad: those of an axis longer by so many tokens, less the pairs in which one of these is the query
        or the key.
        """
        if not front_pad:
            return self.whole_pairs(n, g, arithmetic)
        keys, readers = self.around_first(n + front_pad, g, arithmetic)
        own = self.count(0, 1, arithmetic)
        return (
            self.whole_pairs(n + front_pad, g, arithmetic) - front_pad * (keys + readers) + front_pad * front_pad * own
        )

    @abstractmethod
    def whole_pairs(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> Number:
        """Count the pairs where the first group lacks nothing."""

    @abstractmethod
    def around_first(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> tuple[Number, Number]:
        """Count tokens that the first group reads, and tokens of the groups that read it, where it lacks nothing."""


@dataclass(frozen=True)
class All(AxisSet):
    """Every group."""

    def count(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        return G

    def item(self, i: Number, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        return i

    def ranges(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> tuple[Range, ...]:
        return ((0, G),)

    def whole_pairs(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> Number:
        return n * n

    def around_first(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> tuple[Number, Number]:
        return n, n


@dataclass(frozen=True)
class Own(AxisSet):
    """The query's own group."""

    def count(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        return 1

    def item(self, i: Number, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        return c

    def ranges(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> tuple[Range, ...]:
        return ((c, c + 1),)

    def whole_pairs(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> Number:
        full, last = _full_and_last(n, g, arithmetic)
        return full * g * g + last * last

    def around_first(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> tuple[Number, Number]:
        return g, g


@dataclass(frozen=True)
class Others(AxisSet):
    """Every group but the query's own."""

    def count(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        return G - 1

    def item(self, i: Number, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        return i + arithmetic.at_least(i, c)

    def ranges(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> tuple[Range, ...]:
        return ((0, c), (c + 1, G))

    def whole_pairs(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> Number:
        return n * n - Own().whole_pairs(n, g, arithmetic)

    def around_first(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> tuple[Number, Number]:
        return n - g, n - g


@dataclass(frozen=True)
class Window(AxisSet):
    """The groups within ``radius`` of the query's own."""

    radius: Number
    edge: Edge

    @property
    def reads_evenly(self) -> bool:
        return self.edge == "clamp"

    def count(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        if self.edge == "clamp":
            return arithmetic.minimum(2 * self.radius + 1, G)
        return arithmetic.minimum(c + self.radius, G - 1) - self._start(c, G, arithmetic) + 1

    def item(self, i: Number, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> Number:
        return self._start(c, G, arithmetic) + i

    def ranges(self, c: Number, G: Number, arithmetic: Arithmetic = INTS) -> tuple[Range, ...]:
        start = self._start(c, G, arithmetic)
        return ((start, start + self.count(c, G, arithmetic)),)

    def whole_pairs(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> Number:
        r, (full, last) = self.radius, _full_and_last(n, g, arithmetic)
        G = full + 1
        if self.edge == "clip":
            # A pair of groups d apart, 1 <= d <= m: full - d of them are two full groups, one has the last.
            m = arithmetic.minimum(r, full)
            apart = (2 * m * full - m * (m + 1)) * g * g + 2 * m * g * last
            return apart + Own().whole_pairs(n, g, arithmetic)
        # Every window has w groups; those of the `near` groups next to the high edge hold the last, smaller one.
        w = arithmetic.minimum(2 * r + 1, G)
        near = w - r * arithmetic.at_least(G, 2 * r + 2)
        return n * w * g - (g - last) * ((near - 1) * g + last)

    def around_first(self, n: Number, g: Number, arithmetic: Arithmetic = INTS) -> tuple[Number, Number]:
        near = arithmetic.minimum((self.radius + 1) * g, n)
        if self.edge == "clip":
            return near, near
        # Where the window is shorter than the axis, those read the first group whose window begins with it.
        w = 2 * self.radius + 1
        is_shorter = arithmetic.at_least(arithmetic.ceil_div(n, g), w + 1)
        return arithmetic.minimum(w * g, n), n - is_shorter * (n - near)

    def _start(self, c: Number, G: Number, arithmetic: Arithmetic) -> Number:
        start = arithmetic.maximum(c - self.radius, 0)
        if self.edge == "clip":
            return start
        return arithmetic.minimum(start, arithmetic.maximum(G - 2 * self.radius - 1, 0))


def _full_and_last(n: Number, g: Number, arithmetic: Arithmetic) -> tuple[Number, Number]:
    """Return the groups before the last one, all of g tokens, and the tokens of the last one (1 to g)."""
    full = arithmetic.ceil_div(n, g) - 1
    return full, n - full * g
