import torch
from PIL import Image

from planner.models.emoji.figure import Cell, difference, draw_figure


def test_a_clip_is_animated_and_its_still_cells_stay(tmp_path):
    clip, still = torch.rand(3, 5, 8, 8), torch.rand(3, 8, 8)
    draw_figure(tmp_path / "clip.webp", [("a", [Cell(clip, "moves"), Cell(still, "does not")])], "title", side=32)
    with Image.open(tmp_path / "clip.webp") as figure:
        assert figure.n_frames == 5
        assert figure.width == 2 * 16 + 2 * 32 + 8


def test_the_scale_ends_with_the_greatest_difference_and_saturates_nowhere(tmp_path):
    dense = torch.zeros(3, 8, 8)
    near, far = dense.clone(), dense.clone()
    near[:, 2, 3] = 0.25
    far[:, 4, 5] = 0.75
    cells = [Cell(difference(each, dense), "difference") for each in (near, far)]
    assert draw_figure(tmp_path / "two.png", [("a", cells)], "title", side=8) == 0.75
    top = 16 + 2 * 20 + 2 * 20  # margin, title, label and caption
    with Image.open(tmp_path / "two.png") as figure:
        of_near = figure.getpixel((16 + 3, top + 2))
        of_far = figure.getpixel((16 + 8 + 8 + 5, top + 4))
        nothing = figure.getpixel((16, top))
    assert nothing == (0, 0, 0)
    assert sum(of_near) < sum(of_far)
    assert of_far == (255, 255, 217)  # the brightest colour
