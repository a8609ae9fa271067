import pytest
from examples import site, targets
from hypothesis import given
from hypothesis import strategies as st
from strategies import layouts, options

from planner.errors import BadOption, GroupTooLarge, MalformedValue, PatternCoversAll, UnreachableBudget
from planner.patterns.crisscross import CrissCross
from planner.patterns.dense import Dense
from planner.plan.options import Options
from planner.plan.target import Target
from planner.search.decide import decide
from planner.search.rank import rank, why_dense


def choose(*arguments):
    """Return the winner, which comes first."""
    return rank(*arguments)[0]


@given(layouts(), options, targets)
def test_one_winner_and_a_reason_for_every_loser(layout, opts, target):
    ranked = rank(site(layout), opts, target)
    assert ranked[0].rejected is None
    assert all(candidate.rejected is not None and candidate.rejected.detail for candidate in ranked[1:])
    if isinstance(ranked[0].pattern, Dense):
        assert why_dense(site(layout), opts, ranked)


@given(st.integers(16, 200), st.integers(16, 200), options, targets)
def test_budgets_are_kept(h, w, opts, target):
    best = choose(site(f"text:64 | h:{h} w:{w}"), opts, target)
    if not isinstance(best.pattern, Dense):
        dense = choose(site(f"text:64 | h:{h} w:{w}"), Options(pattern="dense"), target)
        assert opts.density is None or best.density <= opts.density
        assert dense.seconds / best.seconds >= max(opts.speedup or 0, opts.min_speedup)


@given(st.floats(0.02, 1), st.floats(0.02, 1))
def test_a_larger_density_never_keeps_less(a, b):
    small, large = (choose(site(), Options(density=d), Target.named("h100")) for d in sorted((a, b)))
    if not isinstance(small.pattern, Dense):
        assert small.density <= large.density


def test_the_default_is_grat_x_with_its_published_groups():
    assert choose(site(), Options(), Target.named("h100")).pattern == CrissCross((16, 16))
    video = choose(site("t:33 h:45 w:80 | text:256"), Options(), Target.named("h100")).pattern
    assert video == CrissCross((4, 8, 8), "planes")


def test_options_name_the_pattern():
    h100 = Target.named("h100")
    chosen = {
        text: str(choose(site(), Options(**opts), h100).pattern)
        for text, opts in {
            "pattern": {"pattern": "neighborhood{radius=2,edge=clip,group=8x8}"},
            "kind": {"pattern": "neighborhood", "group": "16x16"},
            "group": {"group": "8x16"},
            "dense": {"pattern": "dense"},
        }.items()
    }
    assert chosen == {
        "pattern": "neighborhood{radius=2,edge=clip,group=8x8}",
        "kind": "neighborhood{radius=1,edge=clamp,group=16x16}",
        "group": "crisscross{axes=lines,group=8x16}",
        "dense": "dense",
    }


@pytest.mark.parametrize(
    ("layout", "key_layout", "reason"),
    [
        ("h:16 w:16", None, "below break-even"),
        ("text:256", None, "no grid in text:256"),
        ("h:64 w:64", "text:77", "cross-attention: keys are text:77"),
        ("t:16", None, "no candidate fits the axes of t:16"),
        ("h:64 w:64 | h:32 w:32", None, "2 grids"),
        ("h:4 w:4", None, "too large: the grid is h:4 w:4"),
    ],
)
def test_what_stays_dense_says_why(layout, key_layout, reason):
    (decision,) = decide([site(layout, key_layout=key_layout)], Options(), Target.named("h100"))
    assert decision.pattern == "dense"
    assert decision.reason.startswith(reason)


SMALL = site("h:12 w:20", name="blocks.0.attn")


@pytest.mark.parametrize(
    ("opts", "error", "fault"),
    [
        ({"group": "16x16"}, GroupTooLarge, "blocks.0.attn: a group of 16x16 does not fit"),
        ({"group": "4x4x4"}, GroupTooLarge, "The grid here is h:12 w:20"),
        ({"pattern": "neighborhood{radius=3}", "group": "4x8"}, PatternCoversAll, "3x3 groups"),
        ({"density": 0.001}, UnreachableBudget, "a density of at most 0.001"),
        ({"speedup": 500.0}, UnreachableBudget, "a speedup of at least 500"),
    ],
)
def test_options_that_fit_no_site_are_refused(opts, error, fault):
    with pytest.raises(error) as caught:
        decide([SMALL], Options(**opts), Target.named("cpu"))
    assert fault in str(caught.value)


def test_a_group_too_large_for_some_sites_only_is_no_mistake():
    decisions = decide([SMALL, site()], Options(group="16x16"), Target.named("h100"))
    assert [d.pattern for d in decisions] == ["dense", "crisscross{axes=lines,group=16x16}"]
    assert decisions[0].reason.startswith("too large")


@pytest.mark.parametrize(
    "opts",
    [
        {"density": 0.0},
        {"density": 1.5},
        {"density": float("nan")},
        {"speedup": 0.5},
        {"min_speedup": -1.0},
        {"pattern": "crisscross{group=8x8}", "group": "4x4"},
    ],
)
def test_options_out_of_range_are_refused(opts):
    with pytest.raises(BadOption):
        Options(**opts).verify()


def test_alternate_sites_are_shifted_by_half_a_group():
    text, video = site("text:256", name="t"), "t:33 h:45 w:80 | text:256"
    sites = [site(name="a"), site(video, name="v"), text, site(name="b"), site(name="c"), site(video, name="w")]
    asked = Options(alternate_offsets=True, pattern="crisscross")
    decisions = {decision.site: decision for decision in decide(sites, asked, Target.named("h100"))}
    plain, shifted = "crisscross{axes=lines,group=16x16}", "crisscross{axes=lines,group=16x16,offset=8x8}"
    assert [decisions[name].pattern for name in "abc"] == [plain, shifted, plain]
    assert decisions["v"].pattern == "crisscross{axes=planes,group=4x8x8}"
    assert decisions["w"].pattern == "crisscross{axes=planes,group=4x8x8,offset=2x4x4}"
    assert decisions["b"].density != decisions["a"].density
    for decision in decisions.values():
        decision.verify()


def test_an_offset_can_be_asked_for():
    asked = Options(pattern="neighborhood{offset=8x0}", group="16x16", alternate_offsets=True)
    patterns = [str(choose(site(), asked.verify(), Target.named("h100"), shifted).pattern) for shifted in (False, True)]
    assert patterns == [
        "neighborhood{radius=1,edge=clamp,group=16x16,offset=8x0}",
        "neighborhood{radius=1,edge=clamp,group=16x16,offset=0x8}",
    ]
    for fault in ("crisscross{offset=8x8}", "crisscross{group=8x8,offset=8x8}", "crisscross{group=8x8,offset=0x0}"):
        with pytest.raises(MalformedValue):
            Options(pattern=fault).verify()
