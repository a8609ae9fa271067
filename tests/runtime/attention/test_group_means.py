"""Pooled groups: what their means are, and that every way to attend to them is the same."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import masked_dense as exact
from strategies import layouts, patterns
from zoo import FAMILIES, FORCE, GROUPS

import planner
from planner.errors import BadAttentionInput, BadSpelling
from planner.patterns.density import attended_pairs
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.runtime.attention.dispatch import attend
from planner.runtime.attention.group_means import group_means
from planner.runtime.kernels.bundle import specs_of
from planner.runtime.masked_dense import MaskedDense, masked_dense

POOLED = "crisscross{axes=lines,group=2x3,pooled=mean}"


def by_hand(q, k, v, layout, pattern, visible):
    """One query at a time: a list of keys, values and what they count, from the definition."""
    reads = pattern.mask_mod(layout)
    every, grid = torch.arange(layout.tokens), pattern.grid(layout.grid.sizes)
    group_ids = torch.full((layout.tokens,), -1)
    group_ids[layout.grid_start : layout.grid_start + layout.grid.tokens] = grid.numbers()
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for b in range(len(q)):
        for n in range(layout.tokens):
            near = reads(torch.tensor(n), every) & visible[b]
            keys, values, counts = [k[b][:, near]], [v[b][:, near]], [torch.ones(int(near.sum()))]
            for group in range(int(group_ids.max()) + 1):
                members = (group_ids == group) & visible[b]
                if members.any() and not reads(torch.tensor(n), (group_ids == group).nonzero()[:1, 0]).item():
                    keys.append(k[b][:, members].mean(1, keepdim=True))
                    values.append(v[b][:, members].mean(1, keepdim=True))
                    counts.append(members.sum()[None].float())
            scores = q[b, :, n, None] @ torch.cat(keys, 1).mT * q.shape[3] ** -0.5 + torch.cat(counts).log()
            out[b, :, n] = (scores.softmax(-1) @ torch.cat(values, 1))[:, 0]
    return out


@settings(max_examples=20)
@given(layouts((5, 7)), patterns((2, 3)) | patterns((3, 2), (1, 1)), st.booleans())
def test_each_group_that_is_not_read_counts_as_its_mean(layout, pattern, masks):
    pattern = parse_pattern(str(pattern)[:-1] + ",pooled=mean}")
    q, k, v = torch.randn(3, 2, 2, layout.tokens, 8, dtype=torch.float64)
    visible = torch.rand(2, layout.tokens) < 0.7 if masks else torch.ones(2, layout.tokens, dtype=torch.bool)
    visible[:, layout.grid_start] = True
    mask = visible[:, None, None] if masks else None
    expected = by_hand(q, k, v, layout, pattern, visible)
    known = ~expected.isnan()
    for ours in (
        masked_dense(q, k, v, str(layout), str(pattern), attn_mask=mask),
        attend(q, k, v, str(layout), str(pattern), attn_mask=mask),
        exact(q, k, v, str(layout), str(pattern), mask=None if mask is None else visible)[0],
    ):
        torch.testing.assert_close(ours[known], expected[known], rtol=1e-5, atol=1e-6)


def test_values_that_are_alike_in_every_group_are_attended_exactly_if_keys_are():
    layout, pattern = TokenLayout.parse("text:3 | h:6 w:9"), parse_pattern(POOLED)
    group_ids = pattern.grid(layout.grid.sizes).numbers()
    q, k, v = torch.randn(3, 1, 2, layout.tokens, 8)
    for x in (k, v):
        x[:, :, 3:] = torch.randn(1, 2, int(group_ids.max()) + 1, 8)[:, :, group_ids]
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v, str(layout), POOLED), dense, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(attend(q, k, v, str(layout), str(pattern.near)), dense, atol=1e-2)


def test_a_group_without_a_visible_token_has_no_mean():
    (mean,), sizes = group_means([torch.ones(1, 1, 4, 2)], torch.tensor([0, 0, 1, 1]), 2, torch.tensor([[1, 0, 0, 0]]))
    assert sizes.tolist() == [[0.0, -math.inf]]
    assert mean[0, 0].tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["flux", "hunyuanvideo", "wan"])
def test_models_attend_to_means(name, backend, no_grad):
    model, kwargs = FAMILIES[name]()
    group = GROUPS.get(name, "1x3x5")
    compiled = planner.compile(
        model, pattern="neighborhood{radius=0,pooled=mean}", group=group, backend=backend, **FORCE
    )
    (ours,) = compiled(**kwargs, return_dict=False)
    (plan,) = planner.report(compiled).plans
    assert {pattern.pooled for decision in plan.decisions for pattern in decision.rules.patterns} == {True}
    with MaskedDense(plan):
        (judged,) = model(**kwargs, return_dict=False)
    torch.testing.assert_close(ours, judged, rtol=1e-4, atol=1e-4)


def test_means_are_spelled_counted_and_asked_of_kernels():
    layout, pattern = (
        TokenLayout.parse("text:64 | h:32 w:32"),
        parse_pattern("crisscross{axes=lines,group=8x8,pooled=mean}"),
    )
    assert parse_pattern(str(pattern)) == pattern
    assert attended_pairs(pattern, layout) - attended_pairs(pattern.near, layout) == 1024 * 16
    assert pattern.reach((4, 4)) == 1
    with pytest.raises(BadSpelling, match="pooled is mean"):
        parse_pattern("crisscross{axes=lines,group=8x8,pooled=max}")
    model, kwargs = FAMILIES["flux"]()
    plan = planner.make_plan(
        model, kwargs={**kwargs, "return_dict": False}, pattern="crisscross{pooled=mean}", group="3x5", min_speedup=0.0
    )
    means, attention = sorted(specs_of(plan, planner.Target.named("h100")), key=lambda spec: not spec.only_means)
    assert attention.mean_rows == {
        "3x5": math.prod(attention.patterns[0].grid(attention.token_layout.grid.sizes).counts)
    }
    assert attention.means_read == {"3x5": means.problem}


def test_masks_that_means_cannot_take_are_refused():
    q, k, v = torch.randn(3, 1, 2, 48, 8)
    for mask in (torch.zeros(1, 1, 1, 48), torch.ones(1, 2, 1, 48, dtype=torch.bool)):
        with pytest.raises(BadAttentionInput, match="with pooled groups"):
            attend(q, k, v, "h:6 w:8", POOLED, attn_mask=mask)
    with pytest.raises(BadAttentionInput, match="is_causal with pooled groups"):
        attend(q, k, v, "h:6 w:8", POOLED, is_causal=True)
