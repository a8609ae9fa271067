import pytest
import torch
import torch.nn.functional as F

from planner.capture.trace import capture_module
from planner.errors import CannotCapture


class Asking(torch.nn.Module):
    """Attends to what a function makes of a picture's tokens, a mask and numbers."""

    def __init__(self, ask):
        super().__init__()
        self.ask = ask
        self.weight = torch.nn.Parameter(torch.randn(8))

    def forward(self, x, mask, numbers):
        q = self.ask(self, x, mask, numbers)[:, None]
        return F.scaled_dot_product_attention(q, q, q)


X, MASK, NUMBERS = torch.randn(2, 12, 8), torch.arange(12) < 7, torch.tensor([0.0, 2.0, 5.0])


def length(ask, runs=False):
    capture = capture_module(Asking(ask), (X, MASK, NUMBERS), {}, runs=runs)
    (node,) = capture.attention_nodes()
    return node.meta["val"].shape[2], capture.guards


@pytest.mark.parametrize(
    ("ask", "expected", "read"),
    [
        (lambda m, x, mask, n: x[:, mask], 7, [MASK]),
        (lambda m, x, mask, n: x[:, ~mask], 5, [MASK]),
        (lambda m, x, mask, n: x[:, : int(mask.sum())], 7, [MASK]),
        (lambda m, x, mask, n: x[:, : mask.sum()], 7, [MASK]),
        (lambda m, x, mask, n: x[:, : mask.sum().item()], 7, [MASK]),
        (lambda m, x, mask, n: x[:, mask.nonzero().flatten()], 7, [MASK]),
        (lambda m, x, mask, n: x[:, : len(mask.long().tolist())], 12, [MASK]),
        (lambda m, x, mask, n: x[:, :3] if bool((n == 0).all()) else x[:, :4], 4, [NUMBERS]),
        (lambda m, x, mask, n: x[:, : int(n.max())], 5, [NUMBERS]),
        (lambda m, x, mask, n: x.reshape(2, mask.sum() + 5, 8), 12, [MASK]),
        (lambda m, x, mask, n: x, 12, []),
    ],
)
def test_what_follows_from_the_call_is_told(ask, expected, read):
    found, asked = length(ask)
    assert found == expected
    assert [id(tensor) for tensor in asked] == [id(tensor) for tensor in read]


@pytest.mark.parametrize(
    "ask",
    [
        lambda m, x, mask, n: x[:, : 3 + int(m.weight.max() > 0)],
        lambda m, x, mask, n: x[:, : 3 + int((x @ m.weight).max() > 0)],
    ],
    ids=["weights", "weights and inputs"],
)
def test_what_depends_on_weights_is_not(ask):
    with pytest.raises(CannotCapture, match=r"planner\.compile"):
        length(ask)
    assert length(ask, runs=True)[0] in (3, 4)


def test_nothing_is_known_of_tensors_that_are_not_there():
    ask = Asking(lambda m, x, mask, n: x[:, : int(n.max())])
    with pytest.raises(CannotCapture):
        capture_module(ask, (X, MASK, NUMBERS.to("meta")), {})


def test_a_mask_that_writes_writes_where_it_is_true():
    def written(m, x, mask, n):
        y = torch.zeros_like(x)
        y[:, mask] = x[:, mask]
        return y

    assert length(written) == (12, (MASK,))
