"""The multiple-choice knapsack against trying everything."""

import itertools
import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search.knapsack import Item, solve

numbers = st.one_of(st.integers(0, 12).map(float), st.floats(0, 10, allow_subnormal=False))
items = st.lists(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5).map(lambda pairs: Item(*zip(*pairs, strict=True))),
    min_size=1,
    max_size=5,
)


def total(drawn, places, of):
    return sum(getattr(item, of)[place] for item, place in zip(drawn, places, strict=True))


@settings(max_examples=300)
@given(items, st.floats(0, 40))
def test_nothing_that_fits_costs_less(drawn, budget):
    choices = list(itertools.product(*(range(len(item.costs)) for item in drawn)))
    # Losses are counted in units of 2^-40 of their greatest sum, rounded up.
    fitting = [places for places in choices if total(drawn, places, "losses") <= max(0.0, budget - 1e-9)]
    found = solve(drawn, budget)
    if found is None:
        assert not fitting
        return
    assert total(drawn, found, "losses") <= budget * (1 + 1e-12)
    assert all(total(drawn, found, "costs") <= total(drawn, places, "costs") + 1e-9 for places in fitting)


@given(items, st.floats(0, 40))
def test_no_dominated_option_is_chosen(drawn, budget):
    for item, place in zip(drawn, solve(drawn, budget) or [], strict=False):
        mine = item.costs[place], item.losses[place]
        for other in zip(item.costs, item.losses, strict=True):
            assert not (other != mine and other[0] <= mine[0] and other[1] <= mine[1] - 1e-9)


@given(items, st.floats(0, 40), st.floats(0, 10))
def test_more_budget_never_costs_more(drawn, budget, more):
    tight, loose = solve(drawn, budget), solve(drawn, budget + more)
    if tight is not None:
        assert loose is not None
        assert total(drawn, loose, "costs") <= total(drawn, tight, "costs") + 1e-9


def test_a_model_of_the_size_of_flux_is_solved_in_seconds():
    draw = random.Random(0)
    drawn = []
    for _ in range(57 * 24 * 3):
        scale = draw.lognormvariate(0, 2)
        recalls = sorted(draw.random() for _ in range(24))
        drawn.append(
            Item(
                [*(recall + 0.02 * draw.random() for recall in recalls), 1.2],
                [*(scale * (1 - r) ** 2 for r in recalls), 0.0],
            )
        )
    loosest = sum(max(item.losses) for item in drawn)
    for share in (0.9, 0.3, 0.1, 0.01, 1e-4):
        start = time.perf_counter()
        assert solve(drawn, loosest * share) is not None
        assert time.perf_counter() - start < 10
