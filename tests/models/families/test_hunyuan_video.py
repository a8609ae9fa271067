import torch

from planner.models.emoji.text import Embeddings
from planner.models.families.hunyuan_video import velocity


def test_hunyuan_counts_noise_to_a_thousand_and_masks_no_text():
    seen = {}

    def model(**kwargs):
        seen.update(kwargs)
        return (kwargs["hidden_states"],)

    x = torch.randn(1, 3, 2, 8, 8)
    text = Embeddings(torch.zeros(1, 64, 384), torch.zeros(1, 384))
    assert torch.equal(velocity(model, x, torch.tensor([0.25]), text), x)
    assert seen["timestep"].item() == 250
    assert seen["encoder_attention_mask"].all()
