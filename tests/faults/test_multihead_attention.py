"""nn.MultiheadAttention follows its plan, also where the model is intercepted."""

import pytest
import torch
from zoo import FORCE

import planner
from planner.runtime.masked_dense import MaskedDense

pytestmark = pytest.mark.usefixtures("no_grad")


class Model(torch.nn.Module):
    """Layers of nn.MultiheadAttention over the pixels of an image, with a graph break before each, or without."""

    def __init__(self, breaks):
        super().__init__()
        self.breaks, self.embed = breaks, torch.nn.Conv2d(4, 32, 1)
        self.layers = torch.nn.ModuleList(torch.nn.MultiheadAttention(32, 2) for _ in range(2))

    def forward(self, image):
        tokens = self.embed(image).flatten(2).permute(2, 0, 1)
        for layer in self.layers:
            if self.breaks:
                torch._dynamo.graph_break()
            tokens = tokens + layer(tokens, tokens, tokens, need_weights=False)[0]
        return tokens


@pytest.mark.parametrize("breaks", [False, True])
def test_what_runs_is_what_is_reported(breaks):
    torch.manual_seed(0)
    model, image = Model(breaks).eval(), torch.randn(2, 4, 16, 16)
    compiled = planner.compile(model, pattern="crisscross", group="4x4", **FORCE)
    ours, dense = compiled(image), model(image)
    (plan,) = planner.report(compiled).plans
    assert [decision.is_sparse for decision in plan.decisions] == [True, True]
    with MaskedDense(plan):
        torch.testing.assert_close(ours, model(image), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, dense, atol=1e-4)
    assert planner.report(compiled).intercepted == (breaks,)
