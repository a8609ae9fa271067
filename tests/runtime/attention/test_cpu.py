from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems
from torch.utils._python_dispatch import TorchDispatchMode

from planner.errors import BadAttentionInput
from planner.patterns.dense import Dense
from planner.runtime.attention import cpu
from planner.runtime.attention.cpu import grouped_sdpa
from planner.runtime.attention.gather_plan import make_gather_plan
from planner.runtime.masked_dense import masked_dense


@st.composite
def attention_calls(draw):
    """Tensors and flags of one attention call under a drawn layout and pattern."""
    layout, _, pattern = draw(problems())
    batch, kv_heads, ratio = (draw(st.integers(1, 2)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n = layout.tokens

    def tensor(*shape):
        return torch.randn(*shape, generator=generator)

    flags = {"scale": draw(st.sampled_from([None, 0.3])), "enable_gqa": ratio > 1}
    kind = draw(st.sampled_from(["none", "bool", "additive", "one key row for all", "causal"]))
    if kind == "causal":
        flags["is_causal"] = True
    elif kind == "bool":
        flags["attn_mask"] = tensor(batch, 1, 1, n) > -1
    elif kind == "additive":
        flags["attn_mask"] = tensor(1, kv_heads * ratio, 1, n)
    elif kind == "one key row for all":
        flags["attn_mask"] = tensor(1, n) > -1
    q = tensor(batch, kv_heads * ratio, n, 8)
    k, v = tensor(batch, kv_heads, n, 8), tensor(batch, kv_heads, n, 12)
    return (q, k, v, str(layout), str(pattern)), flags


@given(attention_calls())
def test_equals_masked_dense_attention(call):
    arguments, flags = call
    ours, judge = grouped_sdpa(*arguments, **flags), masked_dense(*arguments, **flags)
    torch.testing.assert_close(ours, judge, rtol=1e-5, atol=1e-5)


@given(attention_calls(), st.integers(2, 300))
def test_groups_attended_together_give_the_same(call, rows):
    """As on a GPU, where groups of one shape share a launch."""
    arguments, flags = call
    judge = masked_dense(*arguments, **flags)
    with patch.dict(cpu.ROWS, cpu=rows):
        torch.testing.assert_close(grouped_sdpa(*arguments, **flags), judge, rtol=1e-5, atol=1e-5)


@given(attention_calls())
def test_in_bf16_no_further_from_the_truth_than_masked_dense(call):
    (q, k, v, *spellings), flags = call
    truth = masked_dense(q.double(), k.double(), v.double(), *spellings, **flags_to(flags, torch.float64))
    low = [x.bfloat16() for x in (q, k, v)], flags_to(flags, torch.bfloat16)
    exact = masked_dense(*(x.double() for x in low[0]), *spellings, **flags_to(low[1], torch.float64))
    budget = (masked_dense(*low[0], *spellings, **low[1]).double() - exact).nan_to_num().abs().max()
    error = (grouped_sdpa(*low[0], *spellings, **low[1]).double() - exact).nan_to_num().abs().max()
    # One unit of bf16 at the size of the output, above what the judge itself loses.
    assert error <= 2 * budget + 2**-8 * truth.nan_to_num().abs().max()


def flags_to(flags, dtype):
    mask = flags.get("attn_mask")
    return flags if mask is None or mask.dtype == torch.bool else flags | {"attn_mask": mask.to(dtype)}


def test_dense_is_plain_attention():
    q, k, v = (torch.randn(1, 2, 12, 8) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(grouped_sdpa(q, k, v, "h:3 w:4", str(Dense())), expected)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("pattern", ["crisscross{group=4x4}", "neighborhood{group=4x4,edge=clip}"])
def test_memory_stays_that_of_the_inputs(pattern):
    """No buffer is larger than one of the inputs, however many groups there are."""
    q, k, v = (torch.randn(1, 2, 64 * 64 + 5, 8) for _ in range(3))
    with Largest() as largest:
        grouped_sdpa(q, k, v, "text:5 | h:64 w:64", pattern)
    assert largest.numel == q.numel()


def test_groups_that_read_the_same_keys_share_one_batch():
    plan = make_gather_plan("h:32 w:32", "neighborhood{group=8x16}", torch.device("cpu"))
    # Two columns of groups: a clamped window holds both, so each row of groups is one batch; edge rows share too.
    assert [item.shape[0] for item in plan.items] == [512, 512]
    assert all(len(item.keys) == 1 for item in plan.items)


@pytest.mark.parametrize(
    ("shape", "mask", "fault"),
    [
        ((1, 2, 15, 8), None, "are not (B, H, 16, D)"),
        ((2, 16, 8), None, "are not (B, H, 16, D)"),
        ((1, 2, 16, 8), torch.ones(16, 16).bool(), "a mask of shape (16, 16)"),
        ((1, 2, 16, 8), torch.ones(1, 1, 1, 15).bool(), "a mask of shape (1, 1, 1, 15)"),
    ],
)
def test_wrong_tensors_are_named(shape, mask, fault):
    q = torch.randn(shape)
    with pytest.raises(BadAttentionInput) as error:
        grouped_sdpa(q, q, q, "h:4 w:4", "crisscross{group=2x2}", attn_mask=mask)
    assert fault in str(error.value)
