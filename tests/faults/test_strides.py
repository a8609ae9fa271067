"""What a model makes of attention's output without a copy it can make of planned attention's: the memory lies alike."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import planner
from planner.runtime.attention.dispatch import attend
from planner.runtime.masked_dense import MaskedDense

LAYOUT, PATTERN = "text:5 | h:8 w:8", "crisscross{axes=lines,group=4x4}"
RULES = f"{PATTERN}[heads=0]; dense[heads=1]"


def lying(order, shape):
    """Make a random tensor whose dimensions lie in memory in an order, slow to fast."""
    return torch.randn([shape[dim] for dim in order]).permute([order.index(dim) for dim in range(4)])


@given(st.permutations(range(3)), st.sampled_from([PATTERN, RULES, "dense"]), st.booleans(), st.booleans())
def test_strides_are_those_of_torchs_own_attention(order, rules, masked, is_sliced):
    shape = (2, 2, 69, 16)
    query, key, value = (lying([*order, 3], shape) for _ in range(3))
    if is_sliced:  # as of a projection of queries, keys and values in one
        query = torch.cat([query, key], -1)[..., :16]
    mask = torch.rand(2, 1, 1, 69) < 0.8 if masked else None
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    ours = attend(query, key, value, LAYOUT, rules, attn_mask=mask)
    assert ours.stride() == theirs.stride()


class Model(torch.nn.Module):
    """Attention whose heads are joined again in one of several ways."""

    def __init__(self, join):
        super().__init__()
        self.join = join
        self.embed, self.qkv, self.out = torch.nn.Conv2d(4, 32, 1), torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)

    def forward(self, image):
        tokens = self.embed(image).flatten(2).transpose(1, 2)
        query, key, value = (x.transpose(1, 2) for x in self.qkv(tokens).unflatten(-1, (3, 2, 16)).unbind(2))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self.out(self.join(attended, tokens.shape))


JOINS = {
    "reshape": lambda x, shape: x.reshape(shape),
    "flatten": lambda x, shape: x.flatten(2),
    "contiguous": lambda x, shape: x.contiguous().view(shape),
    "view": lambda x, shape: x.view(shape),
}


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_heads_are_joined_as_models_write_it(join, backend):
    torch.manual_seed(0)
    model, image = Model(join).eval(), torch.randn(2, 4, 16, 16)
    compiled = planner.compile(model, pattern="crisscross", group="4x4", target="cpu", min_speedup=0.0, backend=backend)
    with torch.no_grad():
        ours = compiled(image)
        (plan,) = planner.report(compiled).plans
        assert plan.decisions[0].is_sparse
        with MaskedDense(plan):
            torch.testing.assert_close(ours, model(image), rtol=1e-4, atol=1e-5)
