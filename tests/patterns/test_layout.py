import pytest
import torch
from hypothesis import given
from strategies import layouts

from planner.errors import BadSpelling, MalformedValue
from planner.patterns.layout import GlobalTokens, Grid, TokenLayout


@given(layouts())
def test_spelling_round_trips(layout):
    assert TokenLayout.parse(str(layout)) == layout


@given(layouts())
def test_coordinates_and_globals_agree_with_a_walk_through_the_segments(layout):
    index = torch.arange(layout.tokens)
    coordinates, is_global = layout.coordinates(index), layout.is_global(index)
    at = 0
    for segment in layout.segments:
        if isinstance(segment, GlobalTokens):
            assert is_global[at : at + segment.tokens].all()
        else:
            expected = torch.cartesian_prod(*map(torch.arange, segment.sizes)).view(segment.tokens, -1)
            found = torch.stack([c[at : at + segment.tokens] for c in coordinates], 1)
            assert torch.equal(found, expected)
            assert not is_global[at : at + segment.tokens].any()
        at += segment.tokens
    assert at == layout.tokens == layout.global_tokens + layout.grid.tokens


def test_parse_reads_names_and_order():
    layout = TokenLayout.parse("encoder_hidden_states:512 | hidden_states[t:3 h:4 w:5]|x:1")
    assert layout.segments == (
        GlobalTokens("encoder_hidden_states", 512),
        Grid((("t", 3), ("h", 4), ("w", 5)), "hidden_states"),
        GlobalTokens("x", 1),
    )
    assert layout.grid_start == 512


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "a segment is empty"),
        ("text:512 |", "a segment is empty"),
        ("h:64 w", "'w' is not NAME:COUNT"),
        ("h:64 w:-3", "'w:-3' is not NAME:COUNT"),
        ("h:64 w:٣", "'w:٣' is not NAME:COUNT"),
        ("x" * 5000, "5000 characters"),
    ],
)
def test_bad_spelling_says_what_is_wrong(text, fault):
    with pytest.raises(BadSpelling, match="as a layout") as error:
        TokenLayout.parse(text)
    assert fault in str(error.value)


@pytest.mark.parametrize("text", ["h:0 w:3", "h:3 h:3", "a:3 b:4", "t:1 h:1 w:1 n:1", "text:99999999999999", "1x:3"])
def test_malformed_layouts_are_refused(text):
    with pytest.raises(MalformedValue):
        TokenLayout.parse(text)


def test_a_layout_with_two_grids_has_no_one_grid():
    with pytest.raises(MalformedValue, match="it has 2 grids"):
        _ = TokenLayout.parse("h:2 w:2 | h:3 w:3").grid
