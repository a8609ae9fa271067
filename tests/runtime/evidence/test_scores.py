"""Scores of candidates against attention worked out pair by pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import layouts, readings

from planner.patterns.catalogue import catalogue
from planner.patterns.density import attended_pairs
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.runtime.evidence import scores
from planner.runtime.evidence.scored_candidates import make_candidates
from planner.runtime.evidence.scores import score
from planner.runtime.masked_dense import masked_dense


def brute_force(q, k, v, layout, pattern, mask, rows):
    """(recall, error, power) by masked dense attention, in float64."""
    repeats = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(repeats, 1), v.double().repeat_interleave(repeats, 1)
    additive = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, float("-inf")).double()
    mass = q @ k.mT * q.shape[-1] ** -0.5
    mass = (mass if additive is None else mass + additive).softmax(-1)
    index = torch.arange(layout.tokens)
    allowed = pattern.mask_mod(layout)(index[:, None], index[None, :])
    dense, sparse = mass @ v, masked_dense(q, k, v, str(layout), str(pattern), attn_mask=mask)
    recall = (mass * allowed).sum(-1)[:, :, rows].mean((0, 2))
    error = (sparse - dense).square().sum(-1)[:, :, rows].mean((0, 2))
    return recall, error, dense.square().sum(-1)[:, :, rows].mean((0, 2))


@settings(max_examples=40)
@given(
    layouts((9, 10)),
    st.lists(readings((2, 3)) | readings((4, 3)) | readings((4, 5), (1, 2)), min_size=1, max_size=4),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from([1, 2**26]),
)
def test_scores_are_those_of_masked_dense_attention(layout, drawn, per_kv, masks, working_set):
    q = torch.randn(2, 2 * per_kv, layout.tokens, 8)
    k, v = torch.randn(2, 2, 2, layout.tokens, 8)
    mask = torch.rand(2, 1, 1, layout.tokens) < 0.7 if masks else None
    if mask is not None:
        mask[..., layout.grid_start :: 7] = True
    candidates = make_candidates(str(layout), tuple(map(str, drawn)), 30, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "WORKING_SET", working_set)
        recall, error, power = score(q, k, v, candidates, mask)
    for at, pattern in enumerate(drawn):
        expected = brute_force(q, k, v, layout, pattern, mask, candidates.queries)
        reads_something = not expected[1].isnan().any()  # a mask may leave a query's window without a key
        for ours, true in zip((recall[at], error[at], power), expected, strict=True):
            if reads_something:
                torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=1e-5)


def test_all_queries_are_drawn_where_there_are_few_and_always_the_same_ones_where_there_are_many():
    candidates = make_candidates("text:3 | h:4 w:5", ("crisscross{axes=lines,group=2x2}",), 100, torch.device("cpu"))
    assert candidates.queries.tolist() == list(range(3, 23))
    few = [
        make_candidates.__wrapped__("h:40 w:50", ("crisscross{axes=lines,group=8x8}",), 7, torch.device("cpu"))
        for _ in "ab"
    ]
    assert len(few[0].queries) == 7
    assert torch.equal(few[0].queries, few[1].queries)


@pytest.mark.parametrize(
    "text", ["text:77 | h:64 w:64", "t:9 h:30 w:47", "n:1000", "h:12 w:16", "h:8 w:300", "h:3 w:3"]
)
def test_the_catalogue_has_each_candidate_once_and_none_is_dense(text):
    layout = TokenLayout.parse(text)
    candidates = catalogue(layout)
    assert len(set(candidates)) == len(candidates)
    assert all(attended_pairs(pattern, layout) < layout.tokens**2 for pattern in candidates)
    assert all(pattern == parse_pattern(str(pattern)).verify() for pattern in candidates)
    assert bool(candidates) == (min(layout.grid.sizes) > 3 or layout.grid.sizes == (1000,))
