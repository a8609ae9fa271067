"""Rules by heads and noise levels: their spelling, their completeness, and attention that follows them."""

import itertools
from dataclasses import replace

import pytest
import torch
from examples import mixed
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import layouts, readings
from zoo import FAMILIES, FORCE

import planner
from planner.errors import BadSpelling, MalformedValue
from planner.patterns.catalogue import catalogue
from planner.patterns.crisscross import CrissCross
from planner.patterns.dense import Dense
from planner.patterns.density import density, rules_density
from planner.patterns.layout import TokenLayout
from planner.patterns.neighborhood import Neighborhood
from planner.patterns.rules import Rule, Rules
from planner.patterns.spelling import parse_pattern
from planner.plan.plan import Plan
from planner.runtime.attention.dispatch import attend
from planner.runtime.kernels.bundle import specs_of
from planner.runtime.masked_dense import MaskedDense, masked_dense

LINES, NEAR = CrissCross((2, 3), "lines"), Neighborhood((2, 3), (1, 1), "clamp")


@st.composite
def chosen(draw, options):
    """Draw a pattern for each range of levels and each head, and the ends of the ranges."""
    heads = draw(st.integers(1, 7))
    levels = sorted(draw(st.sets(st.integers(1, 99), max_size=3)))
    table = [[draw(options) for _ in range(heads)] for _ in range(len(levels) + 1)]
    return table, [*(level / 100 for level in levels), 1.0]


some = st.one_of(st.just(Dense()), readings((2, 3)))


@given(chosen(some))
def test_rules_say_what_was_chosen_and_survive_their_spelling(drawn):
    table, levels = drawn
    rules, heads = Rules.of(table, levels), len(table[0])
    assert Rules.parse(str(rules)) == rules.verify(heads)
    for above, up_to, row in zip([0.0, *levels], levels, table, strict=False):
        found = {head: rule.pattern for rule in rules.at((above + up_to) / 2) for head in rule.heads or range(heads)}
        assert [found[head] for head in range(heads)] == row
    assert sum(share for _, share in rules.shares(heads)) == pytest.approx(1)
    kept = [(rule.pattern, rule.above, rule.up_to) for rule in rules.rules]
    assert len(set(kept)) == len(kept)
    for head in range(heads):
        mine = [rule for rule in rules.rules if head in (rule.heads or range(heads))]
        mine.sort(key=lambda rule: rule.above)
        assert all(a.up_to == b.above and a.pattern != b.pattern for a, b in itertools.pairwise(mine))


@given(chosen(some), layouts((7, 8)))
def test_density_is_the_mean_over_heads_and_levels(drawn, layout):
    table, levels = drawn
    widths = [up_to - above for above, up_to in zip([0.0, *levels], levels, strict=False)]
    rows = [sum(density(pattern, layout) for pattern in row) / len(row) for row in table]
    expected = sum(width * row for width, row in zip(widths, rows, strict=True))
    assert rules_density(Rules.of(table, levels), layout, len(table[0])) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("crisscross{axes=lines,group=2x3}[heads=0]", MalformedValue),
        ("dense[heads=0-1]; dense[heads=1]", MalformedValue),
        ("dense[noise=0:0.5]", MalformedValue),
        ("dense[noise=0.5:0.2]; dense[noise=0.2:1]", MalformedValue),
        ("dense[noise=0:2]", MalformedValue),
        ("dense[heads=2-1]", BadSpelling),
        ("dense[heads=0-9999999]", BadSpelling),
        ("dense[head=1]", BadSpelling),
        ("dense[heads=0", BadSpelling),
        ("", BadSpelling),
    ],
)
def test_rules_that_leave_or_doubly_serve_a_head_are_refused(text, error):
    with pytest.raises(error):
        Rules.parse(text).verify(2)


@settings(max_examples=40)
@given(chosen(some), layouts((5, 7)), st.sampled_from([1, 2]), st.floats(0, 1, width=32), st.booleans())
def test_attention_by_rules_equals_masked_dense_head_by_head(drawn, layout, per_kv, level, masks):
    table, levels = drawn
    rules, heads = Rules.of(table, levels), len(table[0]) * per_kv
    rules = Rules(tuple(Rule(r.pattern, spread(r.heads, per_kv), r.above, r.up_to) for r in rules.rules)).verify(heads)
    q = torch.randn(2, heads, layout.tokens, 8)
    k, v = torch.randn(2, 2, heads // per_kv, layout.tokens, 8).unbind()
    mask = torch.rand(2, 1, 1, layout.tokens) < 0.7 if masks else None
    if mask is not None:
        mask[..., 0] = True
    options = {"attn_mask": mask, "enable_gqa": per_kv > 1}
    noise = torch.tensor(level)
    ours = attend(q, k, v, str(layout), str(rules), **options, noise=noise)
    row = next(row for row, up_to in zip(table, levels, strict=True) if level <= torch.tensor(up_to))
    k, v = (x.repeat_interleave(per_kv, 1) for x in (k, v))
    for head in range(heads):
        at = slice(head, head + 1)
        expected = masked_dense(q[:, at], k[:, at], v[:, at], str(layout), str(row[head // per_kv]), attn_mask=mask)
        seen = ~expected.isnan()
        torch.testing.assert_close(ours[:, at][seen], expected[seen], rtol=1e-4, atol=1e-5)


def spread(heads, per_kv):
    """Return the query heads of some heads of keys."""
    return tuple(head * per_kv + each for head in heads for each in range(per_kv))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_model_follows_a_plan_whose_heads_and_levels_differ(name, backend, no_grad):
    model, kwargs = FAMILIES[name]()
    call = {**kwargs, "return_dict": False}
    uniform = planner.make_plan(model, kwargs=call, group="3x5", sparse_below=0.5, **FORCE)
    plan = mixed(uniform)
    compiled = planner.compile(model, plan=Plan.from_json(plan.to_json()), backend=backend)
    full = 1000 if name == "sd3" else 1
    for level in (0.2, 0.6, 0.9):
        told = call | {"timestep": torch.full_like(kwargs["timestep"], level * full)}
        with MaskedDense(plan, level):
            (judged,) = model(**told)
        torch.testing.assert_close(compiled(**told)[0], judged, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(judged, model(**told)[0], atol=1e-6)
    assert len(planner.report(compiled).plans) == 1


def test_sites_of_a_plan_are_given_the_same_kernels_and_plans_of_many_patterns_too():
    model, kwargs = FAMILIES["flux"]()
    call = {**kwargs, "return_dict": False}
    plan = mixed(planner.make_plan(model, kwargs=call, group="3x5", sparse_below=0.5, **FORCE))
    layout = next(decision.layout for decision in plan.decisions if decision.is_sparse)
    few = {str(pattern) for decision in plan.decisions for pattern in decision.rules.patterns}
    assert plan.kernel_patterns == {layout: "; ".join(sorted(few))}
    assert planner.make_plan(model, kwargs=call, group="3x5", **FORCE).kernel_patterns == {}
    many = {str(Neighborhood((3, 5), (a, b), "clamp")) for a in range(2) for b in range(3)}
    rules = Rules.of([[parse_pattern(text)] * 2 for text in sorted(many)], [0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
    decisions = [replace(d, pattern=str(rules)) if d.is_sparse else d for d in plan.decisions]
    shared = replace(plan, decisions=tuple(decisions)).kernel_patterns[layout]
    assert set(shared.split("; ")) == many | set(map(str, catalogue(TokenLayout.parse(layout))))


def test_the_kernels_of_a_mixed_plan_are_known_ahead():
    model, kwargs = FAMILIES["flux"]()
    call = {**kwargs, "return_dict": False}
    plan = mixed(planner.make_plan(model, kwargs=call, group="3x5", sparse_below=0.5, **FORCE))
    found = [
        (set(spec.patterns), spec.heads, spec.has_head_table) for spec in specs_of(plan, planner.Target.named("h100"))
    ]
    for decision in plan.decisions:
        assert ({rule.pattern for rule in decision.rules.rules}, decision.heads, True) in found
