import itertools
from collections import Counter

import torch
from hypothesis import given
from strategies import problems

from planner.codegen.tiling.regions import regions


def tokens(region):
    """Sequence indices of a region in numbers."""
    for place in itertools.product(*(range(span.start, span.stop) for span in region.spans)):
        yield region.origin + sum(x * span.stride for x, span in zip(place, region.spans, strict=True))


@given(problems())
def test_regions_are_disjoint_and_hold_exactly_what_the_mask_attends(problem):
    layout, grid, pattern = problem
    attends = pattern.mask_mod(layout)
    every = torch.arange(layout.tokens)
    order, first = grid.order(), layout.grid_start
    for coords in grid.coords():
        query = first + order[grid.start(coords)]
        read = Counter(token for region in regions(layout, pattern, coords) for token in tokens(region))
        assert set(read.values()) <= {1}
        assert sorted(read) == every[attends(query, every)].tolist()
