import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.models.emoji.data.scenes import ARRANGEMENTS, Placement, Scene, paint, plan_scene, simple_scene
from planner.models.emoji.data.sprites import Sprites

WHITE = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))


def solid(colour, frames=1, size=32):
    image = np.zeros((frames, size, size, 4), np.uint8)
    image[...] = (*colour, 255)
    return image


SPRITES = Sprites.of({"1f34e": solid((255, 0, 0)), "1f680": solid((0, 0, 255)), "1f44b-1f3fb": solid((0, 255, 0))})
APPLE, ROCKET = SPRITES.codes.index("1f34e"), SPRITES.codes.index("1f680")


def test_a_sprite_covers_its_box_and_nothing_else():
    scene = Scene("red apple", (Placement(APPLE, 0.5, -0.5, 0.5),), WHITE)
    painted = paint([scene], SPRITES, 64)
    expected = torch.ones(3, 64, 64)
    expected[:, :32, 32:] = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)
    inside = torch.zeros(64, 64)
    inside[:32, 32:] = 1
    border = torch.zeros(64, 64, dtype=torch.bool)
    border[30:34], border[:, 30:34], border[:, 62:], border[:2] = True, True, True, True
    assert torch.allclose(painted.images[0, :, 0][:, ~border], expected[:, ~border], atol=1e-5)
    assert torch.allclose(painted.masks[0, 0, 0][~border], inside[~border], atol=1e-5)
    assert painted.masks[0, 1:].abs().max() == 0


def test_later_emoji_hide_earlier_ones_in_picture_and_mask():
    scene = Scene("two", (Placement(APPLE, 0, 0, 0.8), Placement(ROCKET, 0, 0, 0.4)), WHITE)
    painted = paint([scene], SPRITES, 64)
    assert painted.images[0, :, 0, 32, 32].tolist() == [-1, -1, 1]
    assert painted.masks[0, :2, 0, 32, 32].tolist() == [0, 1]
    assert painted.masks[0, :2, 0, 12, 32].tolist() == [1, 0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([16, 32, 64]))
def test_a_picture_is_its_background_and_its_masks(seed, size):
    """With sprites of one colour, every pixel is the mix of colours that the masks say."""
    scene = plan_scene(np.random.default_rng(seed), SPRITES)
    painted = paint([scene], SPRITES, size)
    masks = painted.masks[0, :, 0]
    assert masks.min() >= -1e-6
    assert masks.sum(0).max() <= 1 + 1e-5
    (empty,) = paint([Scene("", (Placement(APPLE, 9, 9, 0.1),), scene.background)], SPRITES, size).images[:, :, 0]
    mixed = (1 - masks.sum(0)) * (empty + 1) / 2
    for slot, placement in enumerate(scene.placements):
        colour = SPRITES.frames[SPRITES.first[placement.sprite], 0, 0, :3].float() / 255
        mixed = mixed + masks[slot] * colour.view(3, 1, 1)
    assert torch.allclose((painted.images[0, :, 0] + 1) / 2, mixed, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_prompts_name_everything_and_where_it_stands(count):
    rng = np.random.default_rng(count)
    for _ in range(20):
        scene = plan_scene(rng, SPRITES, count)
        assert len(scene.placements) == count
        assert all(SPRITES.names[placement.sprite] in scene.prompt for placement in scene.placements)
        if count > 1:
            words = [[word for word, _, _ in each] for each in ARRANGEMENTS[count]]
            assert any(all(word in scene.prompt for word in arrangement) for arrangement in words)
        assert ("background" in scene.prompt or "gradient" in scene.prompt) == (scene.background != WHITE)


def test_clips_go_round():
    frames = np.concatenate([solid((shade, 0, 0)) for shade in (0, 100, 200)])
    sprites = Sprites.of({"1f34e": frames})
    painted = paint([simple_scene(sprites, 0)], sprites, 32, frames=5, starts=[2])
    reds = ((painted.images[0, 0, :, 16, 16] + 1) / 2 * 255).round().int().tolist()
    assert reds == [200, 0, 100, 200, 0]


def test_scenes_follow_their_random_numbers():
    once, again = (plan_scene(np.random.default_rng(7), SPRITES) for _ in range(2))
    assert once == again
