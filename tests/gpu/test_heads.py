"""Heads that follow patterns of their own, on a CUDA device."""

import pytest
import torch
import torch.nn.functional as F
from oracle import masked_dense as exact

from planner.patterns.layout import TokenLayout
from planner.runtime.attention.dispatch import attend
from planner.runtime.masked_dense import masked_dense

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NEAR, CROSS = "neighborhood{edge=clamp,group=16x16,radius=1}", "crisscross{axes=lines,group=16x16}"
LAYOUT, TOKENS = "text:70 | h:64 w:50", 70 + 64 * 50


def tensors(batch, heads_last):
    made = (torch.randn(batch, 8, TOKENS, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    return [x.transpose(1, 2).contiguous().transpose(1, 2) if heads_last else x for x in made]


@pytest.mark.parametrize("pooled", ["", "pooled=mean,"])
@pytest.mark.parametrize("first", [(0, 1, 2, 3), (0, 2, 4, 6), (0, 3, 4), (5,)])
@pytest.mark.parametrize("heads_last", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_head_follows_its_pattern_wherever_it_lies(batch, heads_last, first, pooled):
    q, k, v = tensors(batch, heads_last)
    others = tuple(head for head in range(8) if head not in first)
    near = NEAR.replace("group", pooled + "group")
    spelled = [f"{near}[heads={','.join(map(str, first))}]", f"{CROSS}[heads={','.join(map(str, others))}]"]
    ours = attend(q, k, v, LAYOUT, "; ".join(spelled)).float()
    for pattern, heads in ((near, first), (CROSS, others)):
        judged = masked_dense(*(x[:, list(heads)].float() for x in (q, k, v)), LAYOUT, pattern)
        torch.testing.assert_close(ours[:, list(heads)], judged, rtol=0.02, atol=4e-3)


@pytest.mark.parametrize("layout", [LAYOUT, "t:5 h:21 w:40 | text:300"])
@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("head_dim", [64, 72, 128])
@pytest.mark.parametrize("masks", [False, True])
def test_means_of_groups_and_several_of_them_in_one_launch(masks, head_dim, kv_heads, layout):
    tokens = TokenLayout.parse(layout).tokens
    groups = [("16x16", "8x16", "32x16"), ("4x8x8", "2x8x8", "4x16x16")][layout.startswith("t:")]
    near, wide, cross = (
        f"neighborhood{{radius=1,edge=clip,group={groups[0]},pooled=mean}}",
        f"neighborhood{{radius=0,edge=clamp,group={groups[1]},pooled=mean}}",
        f"crisscross{{axes=lines,group={groups[2]}}}",
    )
    q = torch.randn(2, 8, tokens, head_dim, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(2, tokens, kv_heads, head_dim, device="cuda").bfloat16().transpose(1, 2) for _ in "kv")
    mask = torch.rand(2, 1, 1, tokens, device="cuda") < 0.8 if masks else None
    rules = f"{near}[heads=0,3]; {wide}[heads=1,2,7]; {cross}[heads=4,6]; dense[heads=5]"
    served = {near: [0, 3], wide: [1, 2, 7], cross: [4, 6], "dense": [5]}
    ours = attend(q, k, v, layout, rules, attn_mask=mask, enable_gqa=kv_heads < 8)
    alone = attend(q, k, v, layout, near, attn_mask=mask, enable_gqa=kv_heads < 8)
    keys = None if mask is None else mask[:, 0, 0]
    for pattern, heads in served.items():
        every, _ = exact(q, k, v, layout, pattern, mask=keys)
        for made in [ours] + [alone] * (pattern == near):
            error = (made[:, heads].double() - every[:, heads]).norm() / every[:, heads].norm()
            assert error < 4e-3


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("group", ["16x16", "8x8", "7x5"])
def test_kernels_of_many_patterns_serve_the_few_that_a_site_has(group, masks):
    near = [
        f"neighborhood{{radius={a}x{b},edge={edge},group={group}{pooled}}}"
        for a in range(3) for b in range(3) for edge in ("clamp", "clip") for pooled in ("", ",pooled=mean")
    ]  # fmt: skip
    lines = f"crisscross{{axes=lines,group={group},pooled=mean}}"
    served = {near[5]: [0, 3], near[20]: [1], lines: [2, 6], near[35]: [4], "dense": [5, 7]}
    rules = "; ".join(f"{pattern}[heads={','.join(map(str, heads))}]" for pattern, heads in served.items())
    q, k, v = tensors(2, True)
    mask = torch.rand(2, 1, 1, TOKENS, device="cuda") < 0.8 if masks else None
    ours = attend(q, k, v, LAYOUT, rules, attn_mask=mask, kernel_patterns="; ".join([*near, lines]))
    for pattern, heads in served.items():
        every, _ = exact(q, k, v, LAYOUT, pattern, mask=None if mask is None else mask[:, 0, 0])
        assert (ours[:, heads].double() - every[:, heads]).norm() / every[:, heads].norm() < 4e-3


@pytest.mark.parametrize("head_dim", [64, 128])
def test_means_where_no_other_key_is_hidden(head_dim):
    layout = "text:128 | h:64 w:48"
    tokens = TokenLayout.parse(layout).tokens
    q, k, v = (torch.randn(2, 8, tokens, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    near, lines = (pattern.replace("group", "pooled=mean,group") for pattern in (NEAR, CROSS))
    ours = attend(q, k, v, layout, f"{near}[heads=0,3,6]; {lines}[heads=1-2]; dense[heads=4-5,7]")
    for pattern, heads in ((near, [0, 3, 6]), (lines, [1, 2]), ("dense", [4, 5, 7])):
        expected, _ = exact(q, k, v, layout, pattern)
        for made in (ours, attend(q, k, v, layout, pattern)):
            error = (made[:, heads].double() - expected[:, heads]).norm() / expected[:, heads].norm()
            assert error < 4e-3


@pytest.mark.parametrize("heads", ["0-3", "0,3,4"])
@pytest.mark.parametrize("level", [0.3, 0.7])
def test_a_rule_whose_level_it_is_not_leaves_its_heads_alone(level, heads):
    q, k, v = tensors(1, False)
    mine = [0, 1, 2, 3] if heads == "0-3" else [0, 3, 4]
    others = [head for head in range(8) if head not in mine]
    rules = (
        f"{NEAR}[heads={heads},noise=0:0.5]; dense[heads={heads},noise=0.5:1]; "
        f"{CROSS}[heads={','.join(map(str, others))}]"
    )
    ours = attend(q, k, v, LAYOUT, rules, noise=torch.tensor(level, device="cuda")).float()
    exact = [x.float() for x in (q, k, v)]
    first = masked_dense(*exact, LAYOUT, NEAR) if level < 0.5 else F.scaled_dot_product_attention(*exact)
    judged = torch.where(
        torch.tensor([head in mine for head in range(8)], device="cuda")[:, None, None],
        first,
        masked_dense(*exact, LAYOUT, CROSS),
    )
    torch.testing.assert_close(ours, judged, rtol=0.02, atol=4e-3)
