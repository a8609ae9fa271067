import pytest
import torch
import torch.nn.functional as F

from planner.capture.trace import capture_module
from planner.errors import CannotCapture


class Reading(torch.nn.Module):
    """Attention over what a function makes of an image's tokens, a mask and scalars."""

    def __init__(self, sequence):
        super().__init__()
        self.sequence = sequence
        self.weight = torch.nn.Parameter(torch.randn(8))

    def forward(self, x, mask, scalars):
        q = self.sequence(self, x, mask, scalars)[:, None]
        return F.scaled_dot_product_attention(q, q, q)


X, MASK, SCALARS = torch.randn(2, 12, 8), torch.arange(12) < 7, torch.tensor([0.0, 2.0, 5.0])


def length(sequence, runs=False):
    capture = capture_module(Reading(sequence), (X, MASK, SCALARS), {}, runs=runs)
    (node,) = capture.attention_nodes()
    return node.meta["val"].shape[2], capture.guards


@pytest.mark.parametrize(
    ("sequence", "expected", "guards"),
    [
        (lambda m, x, mask, n: x[:, mask], 7, [MASK]),
        (lambda m, x, mask, n: x[:, ~mask], 5, [MASK]),
        (lambda m, x, mask, n: x[:, : int(mask.sum())], 7, [MASK]),
        (lambda m, x, mask, n: x[:, : mask.sum()], 7, [MASK]),
        (lambda m, x, mask, n: x[:, : mask.sum().item()], 7, [MASK]),
        (lambda m, x, mask, n: x[:, mask.nonzero().flatten()], 7, [MASK]),
        (lambda m, x, mask, n: x[:, : len(mask.long().tolist())], 12, [MASK]),
        (lambda m, x, mask, n: x[:, :3] if bool((n == 0).all()) else x[:, :4], 4, [SCALARS]),
        (lambda m, x, mask, n: x[:, : int(n.max())], 5, [SCALARS]),
        (lambda m, x, mask, n: x.reshape(2, mask.sum() + 5, 8), 12, [MASK]),
        (lambda m, x, mask, n: x, 12, []),
    ],
)
def test_values_that_follow_from_the_call_are_read(sequence, expected, guards):
    tokens, read = length(sequence)
    assert tokens == expected
    assert [id(tensor) for tensor in read] == [id(tensor) for tensor in guards]


@pytest.mark.parametrize(
    "sequence",
    [
        lambda m, x, mask, n: x[:, : 3 + int(m.weight.max() > 0)],
        lambda m, x, mask, n: x[:, : 3 + int((x @ m.weight).max() > 0)],
    ],
    ids=["weights", "weights and inputs"],
)
def test_values_that_depend_on_weights_are_not(sequence):
    with pytest.raises(CannotCapture, match=r"planner\.compile"):
        length(sequence)
    assert length(sequence, runs=True)[0] in (3, 4)


def test_nothing_is_known_of_tensors_that_are_not_there():
    model = Reading(lambda m, x, mask, n: x[:, : int(n.max())])
    with pytest.raises(CannotCapture):
        capture_module(model, (X, MASK, SCALARS.to("meta")), {})


def test_a_mask_that_writes_writes_where_it_is_true():
    def written(m, x, mask, n):
        y = torch.zeros_like(x)
        y[:, mask] = x[:, mask]
        return y

    assert length(written) == (12, (MASK,))


@pytest.mark.parametrize("mask", [lambda x: x > 0, lambda x: (x > 0).clone()[None, :][0]], ids=["own", "view"])
def test_values_that_were_written_over_are_not_read(mask):
    """A model's float inputs are traced without values, so its writes are not there to be read."""

    def written(m, x, _, scalars):
        kept = mask(scalars.repeat(4))
        kept[:3] = False
        return x[:, kept]

    with pytest.raises(CannotCapture):
        length(written)
    assert length(written, runs=True)[0] == 6
