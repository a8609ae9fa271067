"""Rules become few launches, and every head is routed once at every noise level, by its own pattern."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_specs import FLUX, problem

from planner.codegen.spec.body import make_spec
from planner.codegen.spec.candidates import choose_config
from planner.codegen.spec.head_table import HEADER
from planner.codegen.spec.launch_plan import launches
from planner.codegen.spec.problem import MAX_PATTERNS, SLOT_BITS
from planner.errors import MalformedValue
from planner.patterns.crisscross import CrissCross
from planner.patterns.dense import Dense
from planner.patterns.neighborhood import Neighborhood
from planner.patterns.rules import Rules

SITE = replace(problem("n:4608", "dense", heads=6, kv_heads=3, batch=2), layout=FLUX)
SIDES = ((16, 16), (8, 16), (32, 32), (8, 8), (7, 5))
drawn = st.one_of(
    st.just(Dense()),
    st.builds(Neighborhood, st.sampled_from(SIDES), st.just((1, 1)), st.just("clamp"), pooled=st.booleans()),
    st.builds(CrissCross, st.sampled_from(SIDES), pooled=st.booleans()),
)


@settings(max_examples=30)
@given(st.lists(st.lists(drawn, min_size=6, max_size=6), min_size=1, max_size=3), st.sampled_from([90, 80]))
def test_every_head_is_served_once_at_every_level_by_its_pattern(chosen, arch):
    levels = [0.3, 0.6, 1.0][-len(chosen) :]
    made = launches(replace(SITE, arch=arch), Rules.of(chosen, levels))
    for range_of_noise, patterns in enumerate(chosen):
        done = Counter()
        for launch in made:
            asked = launch.problem
            if launch.routing is None:
                done.update((slot, asked.patterns[0]) for slot in range(asked.slots))
                continue
            level = ([0.0, *levels][range_of_noise] + levels[range_of_noise]) / 2
            row = sum(level > edge for edge in launch.routing.levels)
            done.update((slot, asked.patterns[which]) for slot, which in launch.routing.routed[row])
        assert done == Counter((batch * 6 + head, patterns[head]) for batch in range(2) for head in range(6))


@settings(max_examples=30)
@given(st.lists(drawn, min_size=6, max_size=6))
def test_patterns_that_share_a_launch_have_the_tiles_that_they_would_have_alone(patterns):
    made = launches(SITE, Rules.of([patterns], [1.0]))
    for launch in made:
        grouped = [replace(SITE, pattern=str(pattern)) for pattern in launch.problem.grouped]
        configs = map(choose_config, grouped)
        assert len({(config.body, config.block_m) for config in configs}) <= 1
    assert len(made) <= len({pattern.group for pattern in patterns}) or len(made) == 1


def test_sites_of_different_rules_have_the_same_kernels():
    near = [
        str(Neighborhood((16, 16), (a, b), "clamp", pooled=pooled)) for a in (0, 1) for b in (0, 1) for pooled in (0, 1)
    ]
    small = [pattern.replace("16x16", "8x8") for pattern in near]
    every = "; ".join([*near, *small])
    first = launches(SITE, rules(f"{near[1]}[heads=0-2]", f"{near[4]}[heads=3-5]"), every)
    other = launches(SITE, rules(f"{near[2]}[heads=0-3]", f"{small[0]}[heads=4]", "dense[heads=5]"), every)
    assert len(first) == 1
    assert len(other) == 2
    assert first[0].problem == other[0].problem
    assert set(map(str, first[0].problem.patterns)) == {*near, "dense"}
    assert set(map(str, other[1].problem.patterns)) == {*small, "dense"}
    routed = [dict(launch.routing.routed[0]) for launch in other if launch.routing is not None]
    assert sorted(routed[0]) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 11]
    assert sorted(routed[1]) == [4, 10]


def rules(*spelled):
    return Rules.parse("; ".join(spelled))


NEAR, LINES = "neighborhood{{radius=1,edge=clamp,group={}}}", "crisscross{{axes=lines,group={}}}"


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        (("dense",), 1),
        (("dense[heads=0-2]", "dense[heads=3-5]"), 1),
        ((NEAR.format("16x16") + "[noise=0:0.8]", "dense[noise=0.8:1]"), 1),
        ((NEAR.format("16x16") + "[heads=0,2]", LINES.format("8x16") + "[heads=1,3]", "dense[heads=4-5]"), 1),
        ((NEAR.format("16x16") + "[heads=0-2]", NEAR.format("8x8") + "[heads=3-5]"), 2),
        ((NEAR.format("8x8") + "[heads=0-2]", LINES.format("8x8") + "[heads=3-5]"), 1),
        ((NEAR.format("7x5") + "[heads=0-2]", LINES.format("7x6") + "[heads=3-5]"), 2),
    ],
)
def test_how_many_launches_rules_take(asked, count):
    assert len(launches(SITE, rules(*asked))) == count


def test_means_are_made_for_the_heads_of_keys_that_are_read_and_no_others():
    pooled = NEAR.format("16x16").replace("group", "pooled=mean,group")
    (launch,) = launches(SITE, rules(f"{pooled}[heads=0,3]", f"{LINES.format('8x16')}[heads=1-2,4-5]"))
    assert [each.only_means for each in launch.problems] == [True, False]
    assert launch.problem.mean_rows == {"16x16": 16}
    assert launch.routing is not None
    assert launch.routing.means(launch.problem, "16x16").routed == (((0, 0), (1, 0), (3, 0), (4, 0)),)


def test_heads_with_the_most_work_come_first():
    (launch,) = launches(SITE, rules(f"{NEAR.format('16x16')}[heads=0-3]", "dense[heads=4-5]"))
    assert launch.routing is not None
    spec = make_spec(launch.problem, choose_config(launch.problem))
    (row,) = launch.routing.table(spec).rows
    assert row[0] == 12
    assert sorted(entry & ((1 << SLOT_BITS) - 1) for entry in row[HEADER : HEADER + 4]) == [4, 5, 10, 11]


def test_problems_of_several_patterns_say_what_they_cannot_be():
    both = "; ".join([NEAR.format("16x16"), LINES.format("8x16")])
    with pytest.raises(MalformedValue, match="no table says"):
        replace(SITE, pattern=both).verify()
    with pytest.raises(MalformedValue, match="lack different numbers"):
        replace(SITE, pattern=both.replace("8x16", "8x16,offset=4x8"), has_head_table=True).verify()
    many = "; ".join(str(Neighborhood((16, 16), (0, 0), "clip")) for _ in range(MAX_PATTERNS + 1))
    with pytest.raises(MalformedValue, match="more than 64 patterns"):
        replace(SITE, pattern=many, has_head_table=True).verify()
