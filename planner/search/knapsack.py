"""The multiple-choice knapsack: one option of each item, the least cost whose losses stay within a budget.

After Dyer (1984) and Zemel (1984) for the relaxation and Pisinger (1995) for the rest. A price on losses splits the
problem into items and bounds its cost from below; only options whose price is within the gap to the best solution known
can be part of a better one. Few are, and they are combined item by item, dominated and hopeless combinations dropped.
That is exact up to EXACT items; of more items the choice is proven to cost at most NEARLY more than the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

RESOLUTION = 2.0**40
"""Losses are counted in units of their greatest sum over this, rounded up: the budget is never exceeded by rounding."""


EXACT = 500
NEARLY = 1e-5
"""Of the cost of the least losses."""


@dataclass(frozen=True)
class Item:
    """The options of one item: what each costs and what each loses, both at least 0."""

    costs: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True)
class _Hull:
    """An item's options worth taking, the cheapest last; corners: those on the lower convex hull."""

    places: list[int]
    costs: Numbers
    losses: Whole
    corners: list[int]


def solve(items: Sequence[Item], budget: float) -> list[int] | None:
    """Choose an option of each item, None where even the least losses exceed the budget.

    Of choices that cost the same one with less loss is taken. A dominated option never is.
    """
    most = math.fsum(max(item.losses) for item in items)
    unit = 2.0 ** math.floor(math.log2(most)) / RESOLUTION if most > 0 else 1.0
    hulls = [_hull(item, unit) for item in items]
    limit = math.floor(min(budget, 2 * most) / unit)
    if sum(int(hull.losses[0]) for hull in hulls) > limit:
        return None
    price, base = _relaxed(hulls, limit)
    return [hull.places[at] for hull, at in zip(hulls, _improved(hulls, limit, price, base), strict=True)]


def _hull(item: Item, unit: float) -> _Hull:
    costs = np.asarray(item.costs, np.float64)
    losses = np.ceil(np.asarray(item.losses, np.float64) / unit).astype(np.int64)
    places = list[int]()
    for place in np.lexsort((costs, losses)).tolist():
        if not places or costs[place] < costs[places[-1]]:
            places.append(place)
    costs, losses = costs[places], losses[places]
    corners = list[int]()
    for at in range(len(places)):
        while len(corners) > 1 and _is_above(costs, losses, corners[-2], corners[-1], at):
            corners.pop()
        corners.append(at)
    return _Hull(places, costs, losses, corners)


def _is_above(costs: Numbers, losses: Whole, a: int, b: int, c: int) -> bool:
    """Tell whether b lies on or above the line from a to c."""
    return (costs[a] - costs[b]) * (losses[c] - losses[a]) <= (costs[a] - costs[c]) * (losses[b] - losses[a])


def _relaxed(hulls: Sequence[_Hull], limit: int) -> tuple[float, list[int]]:
    """Return the price at which the relaxation's losses meet the limit, and its whole choices that stay within it."""
    steps = [
        ((hull.costs[a] - hull.costs[b]) / (hull.losses[b] - hull.losses[a]), number, b)
        for number, hull in enumerate(hulls)
        for a, b in pairwise(hull.corners)
    ]
    taken, room = [0] * len(hulls), limit - sum(int(hull.losses[0]) for hull in hulls)
    for worth, number, corner in sorted(steps, key=lambda step: (-step[0], *step[1:])):
        more = int(hulls[number].losses[corner] - hulls[number].losses[taken[number]])
        if more > room:
            return float(worth), taken
        taken[number], room = corner, room - more
    return 0.0, taken


def _improved(hulls: Sequence[_Hull], limit: int, price: float, base: list[int]) -> list[int]:
    """Find the best of all solutions, at least as good as a first one."""
    priced = [hull.costs + price * hull.losses for hull in hulls]
    cheapest = [int(each.argmin()) for each in priced]
    bound = math.fsum(float(each.min()) for each in priced) - price * limit
    # A combination is dropped if it is worse than the best one by rounding, or not better by enough.
    whole = max(abs(bound), math.fsum(float(hull.costs[0]) for hull in hulls))
    slack = whole * (1e-12 if len(hulls) <= EXACT else -NEARLY)

    def cost_of(places: Sequence[int]) -> float:
        return math.fsum(float(hull.costs[at]) for hull, at in zip(hulls, places, strict=True))

    base = _filled(hulls, limit, base)
    best_cost = cost_of(base)
    open_items = list[tuple[float, int, list[int]]]()
    for number, (each, at) in enumerate(zip(priced, cheapest, strict=True)):
        extra = each - each[at]
        options = [option for option in np.flatnonzero(extra <= best_cost - bound + slack).tolist() if option != at]
        if options:
            open_items.append((float(extra[options].min()), number, options))
    # A state is a set of departures from the cheapest priced options, as the cost and the loss of all items together.
    costs = np.array([cost_of(cheapest)])
    losses = np.array([sum(int(hull.losses[at]) for hull, at in zip(hulls, cheapest, strict=True))])
    history = list[tuple[int, Whole, Whole]]()
    best = _best(costs, losses, limit, best_cost)
    depth = 0
    for _, number, options in sorted(open_items):
        hull, at = hulls[number], cheapest[number]
        choices = np.array([at, *options])
        all_costs = (costs + (hull.costs[choices] - hull.costs[at])[:, None]).ravel()
        all_losses = (losses + (hull.losses[choices] - hull.losses[at])[:, None]).ravel()
        best_cost = min([best_cost, *all_costs[all_losses <= limit].tolist()])
        order = np.lexsort((all_costs, all_losses))
        order = order[(all_costs + price * (all_losses - limit) <= best_cost + slack)[order]]
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], all_costs[order]]))[:-1]
        order = order[all_costs[order] < lowest]
        parents = np.tile(np.arange(len(costs)), len(choices))
        history.append((number, parents[order], np.repeat(choices, len(costs))[order]))
        costs, losses = all_costs[order], all_losses[order]
        found = _best(costs, losses, limit, best_cost)
        if found is not None:
            best, depth = found, len(history)
    if best is None:
        return base
    chosen, state = list(cheapest), best
    for number, parents, choices in reversed(history[:depth]):
        chosen[number], state = int(choices[state]), int(parents[state])
    return chosen


def _filled(hulls: Sequence[_Hull], limit: int, base: Sequence[int]) -> list[int]:
    """Replace options of a choice by cheaper ones that fit into the room it leaves, the greatest saving first."""
    taken = list(base)
    room = limit - sum(int(hull.losses[at]) for hull, at in zip(hulls, taken, strict=True))
    while True:
        best = (0.0, 0, 0)
        for number, hull in enumerate(hulls):
            # Losses ascend and costs descend: the last option that fits saves the most.
            option = int(np.searchsorted(hull.losses, hull.losses[taken[number]] + room, side="right")) - 1
            best = max(best, (float(hull.costs[taken[number]] - hull.costs[option]), number, option))
        if not best[0] > 0:
            return taken
        _, number, option = best
        room -= int(hulls[number].losses[option] - hulls[number].losses[taken[number]])
        taken[number] = option


def _best(costs: Numbers, losses: Whole, limit: int, cost: float) -> int | None:
    """Return the first state within the limit that costs no more than the best cost so far, None if there is none."""
    found = np.flatnonzero((losses <= limit) & (costs <= cost))
    return int(found[0]) if len(found) else None
