import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planner.capture.call import Call
from planner.models.families.flux import flux_ids
from planner.patterns.layout import Grid
from planner.provenance.coordinates import grid_of_coordinates, grids_of, rasters_within, segments_of


@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 4), st.floats(0.1, 3), st.integers(0, 50))
def test_any_raster_of_coordinates_is_read(h, w, t, step, first):
    ids = torch.stack(torch.meshgrid(*(torch.arange(n) * step + first for n in (t, h, w)), indexing="ij"), -1)
    assert grid_of_coordinates(ids.view(-1, 3), t * h * w) == ((t, h, w) if t > 1 else (h, w))


def test_rounding_in_bf16_does_no_harm():
    """FLUX keeps its ids in bf16, which has no 257: neighbouring rows and columns can share a coordinate."""
    ids = flux_ids(512, 512).bfloat16()
    assert len(ids[:, 1].unique()) < 512
    assert grid_of_coordinates(ids, 512 * 512) == (512, 512)


@pytest.mark.parametrize(
    "ids",
    [
        torch.zeros(12, 3),
        torch.stack([torch.arange(12)] * 3, 1),
        flux_ids(3, 4)[torch.randperm(12, generator=torch.Generator().manual_seed(0))],
        torch.cat([flux_ids(2, 3), flux_ids(3, 2)]),
        flux_ids(3, 4)[:, :1],
        flux_ids(3, 4).to("meta"),
    ],
    ids=["zeros", "diagonal", "shuffled", "two images", "one column", "meta"],
)
def test_what_is_no_raster_is_not_read(ids):
    assert grid_of_coordinates(ids, 12) is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"img_shapes": [[(1, 3, 4)]]}, "h:3 w:4"),
        ({"img_shapes": [(1, 3, 4)]}, "h:3 w:4"),
        ({"shape": (3, 4)}, "h:3 w:4"),
        ({"img_shapes": [[(1, 2, 3), (1, 3, 2)]]}, "h:2 w:3 | h:3 w:2"),
        ({"num_frames": 2, "height": 2, "width": 3}, "t:2 h:2 w:3"),
        ({"height": 3, "width": 4, "steps": 50}, "h:3 w:4"),
        ({"height": 3, "return_dict": True, "width": 4}, ""),
        ({"height": 5, "width": 4}, ""),
        ({}, ""),
    ],
)
def test_whole_numbers_give_the_grid(arguments, expected):
    grids, read = grids_of(Call(arguments), 12)
    assert " | ".join(map(str, grids)) == expected
    assert read == ()


def test_tensors_whose_values_were_read_are_named():
    grids, read = grids_of(Call({"txt_ids": torch.zeros(4, 3), "img_ids": flux_ids(3, 4)}), 12)
    assert (str(grids[0]), read) == ("h:3 w:4", ("img_ids",))
    assert grids_of(Call({"img_ids": torch.zeros(12, 3)}), 12) == ((), ("img_ids",))


def joint(words, h, w, sounds=0):
    image = torch.cartesian_prod(torch.arange(1), torch.arange(h), torch.arange(w)) + words
    return torch.cat([torch.arange(words)[:, None].expand(-1, 3), image, torch.arange(sounds)[:, None].expand(-1, 3)])


@given(st.integers(0, 9), st.integers(2, 12), st.integers(2, 12), st.integers(0, 9))
def test_a_raster_is_found_among_the_coordinates_of_a_whole_sequence(words, h, w, sounds):
    segments = rasters_within(joint(words, h, w, sounds), "x")
    grids = [str(segment) for segment in segments if isinstance(segment, Grid)]
    assert grids == [f"x[h:{h} w:{w}]"]
    assert sum(segment.tokens for segment in segments) == words + h * w + sounds


def test_coordinates_of_a_whole_sequence_give_the_grid_of_a_part():
    for ids in (joint(5, 3, 4), joint(5, 3, 4).T.contiguous(), joint(5, 3, 4)[None]):
        segments, read = segments_of(Call({"ids": ids}), "x", 12, 5, 17)
        assert ([str(segment) for segment in segments], read) == (["x[h:3 w:4]"], {"ids"})
    segments, _ = segments_of(Call({"ids": torch.zeros(17, 3)}), "x", 12, 5, 17)
    assert [str(segment) for segment in segments] == ["x:12"]


def test_a_number_of_frames_gives_a_line():
    assert [str(s) for s in segments_of(Call({"audio_num_frames": 9}), "a", 9, 0, 9)[0]] == ["a[n:9]"]
    assert [str(s) for s in segments_of(Call({"seq_len": 9}), "a", 9, 0, 9)[0]] == ["a:9"]
