"""A program may wrap torch's attention, to count or to log: what hands on to it is planned as it would be without."""

import pytest
import torch
import torch.nn.functional as F
from zoo import FORCE

import planner

pytestmark = pytest.mark.usefixtures("no_grad")


class Model(torch.nn.Module):
    """Attention over the pixels of an image, after a graph break or without."""

    def __init__(self, breaks):
        super().__init__()
        self.breaks, self.qkv = breaks, torch.nn.Linear(8, 96)

    def forward(self, image):
        tokens = image.flatten(2).mT
        if self.breaks:
            torch._dynamo.graph_break()
        query, key, value = self.qkv(tokens).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_wrapper_changes_nothing(breaks, before, monkeypatch):
    torch.manual_seed(0)
    model, image = Model(breaks).eval(), torch.randn(1, 8, 16, 16)
    expected = planner.compile(model, pattern="crisscross", group="4x4", **FORCE)(image)
    own, calls = F.scaled_dot_product_attention, []

    def wrapper(*args, **kwargs):
        calls.append(None)
        return own(*args, **kwargs)

    compiled = planner.compile(model, pattern="crisscross", group="4x4", **FORCE)
    if not before:
        compiled(image)
    monkeypatch.setattr(F, "scaled_dot_product_attention", wrapper)
    torch.testing.assert_close(compiled(image), expected)
    plans = planner.report(compiled).plans
    assert all(decision.is_sparse for plan in plans for decision in plan.decisions)
    assert not torch.allclose(expected, model(image), atol=1e-3)
