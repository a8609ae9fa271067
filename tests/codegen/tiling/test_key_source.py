"""Sources of keys: a list's tiles hold each token of its groups once, and closed forms, means and lists look alike."""

import itertools
from collections import Counter

import listed
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from kernel_specs import FLUX, HOPPER, PAIRS, WIDE, problem
from strategies import problems

from planner.codegen.emit.bodies import emit
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.candidates import choose_config
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.feasibility import why_not
from planner.codegen.tiling.key_source import LISTED, coordinates, listed_tiles


@given(problems(), st.sampled_from([16, 32, 128]), st.data())
def test_the_tiles_of_a_list_hold_each_token_of_its_groups_once(drawn, tokens, data):
    layout, grid, pattern = drawn
    tiles = listed_tiles(layout, listed.Listed(pattern.group, offset=pattern.offset), tokens)
    groups = list(grid.coords())
    chosen = data.draw(st.lists(st.sampled_from(groups), min_size=1, max_size=3, unique=True))
    i, read = sympy.Symbol("i", integer=True, nonnegative=True), Counter()
    starts = tiles.starts(i)
    for place in range(int(sympy.sympify(tiles.count).subs(LISTED, len(chosen)))):
        group = chosen[place // tiles.boxes_per_group]
        at = dict(zip(coordinates(len(group)), group, strict=True))
        along = [
            range(first, min(first + side, stop))
            for first, side, stop in (
                (int(sympy.sympify(start).subs({**at, i: place})), side, int(sympy.sympify(span.stop).subs(at)))
                for start, side, span in zip(starts, tiles.box, tiles.region.spans, strict=True)
            )
        ]
        strides = [span.stride for span in tiles.region.spans]
        read.update(
            tiles.region.origin + sum(x * stride for x, stride in zip(token, strides, strict=True))
            for token in itertools.product(*along)
        )
    order = grid.order()
    expected = [
        layout.grid_start + int(token)
        for group in chosen
        for token in order[grid.start(group) : grid.start(group) + grid.size(group)]
    ]
    assert read == Counter(expected)


def test_all_sources_answer_the_same_questions():
    with listed.registered():
        closed, means, lists = (
            make_spec(problem(FLUX, text), KernelConfig.parse(HOPPER)).program.sources
            for text in (
                "crisscross{axes=lines,group=16x16}",
                "crisscross{axes=lines,group=16x16,pooled=mean}",
                "listed{longest=3,group=16x16}",
            )
        )
    assert [source.arguments for source in closed] == [()] * len(closed)
    assert means[-1].arguments == ("mean_bias",)
    assert lists[-1].arguments == ("key_lists",)
    for source in (*closed, *means, *lists):
        assert source.mean_count > 0
        assert len(source.starts(sympy.Symbol("i"))) == len(source.view.axes)
    assert lists[-1].mean_count == 3 * 2  # groups of 256 tokens are two tiles of 128


@pytest.mark.parametrize("arch", [80, 89, 90, 100, 120])
@pytest.mark.parametrize("pattern", ["listed{longest=9,group=16x16}", "listed{longest=9,group=7x5,offset=2x3}"])
def test_a_kernel_that_reads_lists_compiles_for_every_target(arch, pattern):
    compile_emitted = pytest.importorskip("planner.runtime.kernels.compile").compile_emitted
    with listed.registered():
        asked = problem(FLUX, pattern, arch=arch, returns_lse=True)
        emitted = emit(make_spec(asked, choose_config(asked)))
        assert "key_lists" in [argument.name for argument in emitted.arguments]
        is_hopper = arch == 90 and "16x16" in pattern
        assert emitted.spec.config.body == ("sm90" if is_hopper else "triton")
        compile_emitted(emitted)


@pytest.mark.parametrize(
    ("pattern", "config", "reason"),
    [
        ("listed{group=8x8}", PAIRS, "reads no lists of keys"),
        ("listed{group=16x16}; dense", HOPPER, "lists of keys are of one pattern alone"),
        ("listed{group=16x16,pooled=mean}", WIDE, "do not say which means to leave out"),
    ],
)
def test_what_cannot_read_lists_says_so(pattern, config, reason):
    with listed.registered():
        asked = problem(FLUX, pattern, has_head_table=";" in pattern)
        assert reason in why_not(KernelConfig.parse(config), asked)
