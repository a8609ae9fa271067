import torch

from planner.models.emoji.text import Embeddings
from planner.models.families.flux import velocity


def test_flux_packs_two_by_two_pixels_in_raster_order():
    seen = {}

    def model(**kwargs):
        seen.update(kwargs)
        return (kwargs["hidden_states"],)

    x = torch.randn(2, 3, 8, 16)
    text = Embeddings(torch.zeros(2, 64, 384), torch.zeros(2, 384))
    assert torch.equal(velocity(model, x, torch.ones(2), text), x)
    packed, ids = seen["hidden_states"], seen["img_ids"]
    assert packed.shape == (2, 4 * 8, 12)
    assert torch.equal(packed[0, 9].view(3, 2, 2), x[0, :, 2:4, 2:4])
    assert ids[9].tolist() == [0, 8, 8]


def test_positions_do_not_depend_on_the_resolution():
    seen = []

    def model(**kwargs):
        seen.append(kwargs["img_ids"])
        return (kwargs["hidden_states"],)

    text = Embeddings(torch.zeros(1, 64, 384), torch.zeros(1, 384))
    for side in (32, 128, 256):
        velocity(model, torch.zeros(1, 3, side, side), torch.ones(1), text)
    assert [ids[:, 1].max().item() for ids in seen] == [60, 63, 63.5]
    assert [ids[1, 2].item() for ids in seen] == [4, 1, 0.5]
