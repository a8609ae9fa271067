"""Budgets: what bounds a choice from evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from planner.errors import BadOption


@dataclass(frozen=True)
class Budget:
    """What bounds a choice; exactly one of four.

    error: predicted mean squared error of the model's output, on average over the steps, each range of noise levels
    times its gain. recall: every head keeps at least this share of its softmax mass. density: at most this share of the
    pairs is attended, on average over sites, heads and steps. speedup: attention is predicted to run so much faster.
    """

    error: float | None = None
    recall: float | None = None
    density: float | None = None
    speedup: float | None = None

    def verify(self) -> Budget:
        """Return the budget itself; raises BadOption."""
        bounds = {name: value for name, value in vars(self).items() if value is not None}
        if len(bounds) != 1:
            raise BadOption("budget", ", ".join(bounds) or None, f"one of {', '.join(vars(self))}")
        ((name, bound),) = bounds.items()
        if name in ("recall", "density") and not 0 <= bound <= 1:
            raise BadOption(name, bound, "a share from 0 to 1")
        if name in ("error", "speedup") and not bound >= 0:
            raise BadOption(name, bound, "a number of at least 0")
        return self

    def __str__(self) -> str:
        return next(f"{name} {bound:.3g}" for name, bound in vars(self).items() if bound is not None)


class Budgets(TypedDict, total=False):
    """The fields of Budget, as keyword arguments."""

    error: float | None
    recall: float | None
    density: float | None
    speedup: float | None
