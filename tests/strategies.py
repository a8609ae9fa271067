"""Hypothesis strategies for every value of the planner. Import them to test your own pattern or layout.

All draw small values, so that brute force over pairs of tokens stays cheap: at most MAX_TOKENS tokens on the grid.
"""

import math
from dataclasses import replace

from hypothesis import strategies as st

from planner.errors import MalformedValue
from planner.patterns.base import PATTERNS
from planner.patterns.dense import Dense
from planner.patterns.fields import Flag, Numbers, Word
from planner.patterns.groups import GroupGrid
from planner.patterns.layout import GlobalTokens, Grid, TokenLayout
from planner.plan.options import Options

MAX_TOKENS = 400
AXES = {1: (("n",), ("w",), ("t",)), 2: (("h", "w"), ("w", "h"), ("t", "n")), 3: (("t", "h", "w"),)}


@st.composite
def sizes(draw, min_axes=1, max_axes=3):
    """Extents of a small grid, slow to fast."""
    axes = draw(st.integers(min_axes, max_axes))
    return draw(
        st.tuples(*[st.integers(1, {1: 60, 2: 14, 3: 7}[axes])] * axes).filter(lambda s: math.prod(s) <= MAX_TOKENS)
    )


@st.composite
def group_grids(draw, **kwargs):
    """Draw a grid and groups that fit in it, ragged edges included."""
    extents = draw(sizes(**kwargs))
    return GroupGrid(extents, group := tuple(draw(st.integers(1, n)) for n in extents), draw(offsets(group))).verify()


def offsets(group):
    """No offset, or less than a group along each axis."""
    some = st.tuples(*(st.integers(0, g - 1) for g in group)).filter(any)
    return st.just(()) | some if max(group) > 1 else st.just(())


names = st.sampled_from(["text", "class_token", "encoder_hidden_states", "image_embeds.1", "x-2"])
global_tokens = st.builds(GlobalTokens, names, st.integers(1, 6))


@st.composite
def grids(draw, extents=None):
    """Draw a named or nameless grid."""
    extents = extents or draw(sizes())
    axes = draw(st.sampled_from(AXES[len(extents)]))
    return Grid(tuple(zip(axes, extents, strict=True)), draw(st.sampled_from(["", "hidden_states"])))


@st.composite
def layouts(draw, extents=None):
    """Draw a layout with one grid and global tokens before, after, on both sides or nowhere."""
    before, after = draw(st.lists(global_tokens, max_size=2)), draw(st.lists(global_tokens, max_size=2))
    return TokenLayout((*before, draw(grids(extents)), *after)).verify()


def values(field, axes):
    """Small values of a field of a pattern, as its type says."""
    numbers = st.integers(field.least, field.least + 3)
    if isinstance(field, Word):
        return st.sampled_from(field.words)
    if isinstance(field, Numbers):
        return st.tuples(*[numbers] * axes)
    return st.booleans() if isinstance(field, Flag) else numbers


def is_well_formed(pattern):
    try:
        return pattern == pattern.verify()
    except MalformedValue:
        return False


def of_kind(kind, group, offset=()):
    """Any pattern of a registered kind with a given group and offset."""
    given = {name: values(field, len(group)) for name, field in kind.fields().items()}
    given |= {"group": st.just(group), "offset": st.just(offset), "pooled": st.just(False)}
    return st.builds(kind, **given).filter(is_well_formed)


def patterns(group, offset=()):
    """Any registered pattern with a given group and offset."""
    kinds = [kind for kind in PATTERNS.values() if kind is not Dense]
    return st.sampled_from(kinds).flatmap(lambda kind: of_kind(kind, group, offset))


def readings(group, offset=()):
    """Any pattern with a given group and offset, with or without pooled groups."""
    return st.builds(replace, patterns(group, offset), pooled=st.booleans())


@st.composite
def problems(draw, **kwargs):
    """(layout, group grid, pattern) that fit together."""
    grid = draw(group_grids(**kwargs))
    return draw(layouts(grid.sizes)), grid, draw(patterns(grid.group, grid.offset))


options = st.builds(
    Options,
    pattern=st.sampled_from([None, "crisscross", "neighborhood", "neighborhood{radius=2}", "dense"]),
    density=st.none() | st.floats(0.01, 1),
    speedup=st.none() | st.floats(1, 20),
    min_speedup=st.floats(0, 3),
    sparse_below=st.sampled_from([1.0, 0.7]),
    noise=st.sampled_from([None, "1-timestep"]),
    alternate_offsets=st.booleans(),
).filter(lambda options: options.pattern != "dense" or options.density is options.speedup is None)
