import pytest

from planner.shapes import times


@pytest.mark.parametrize(("sizes", "text"), [((4, 8, 8), "4x8x8"), ([16], "16"), ((), "")])
def test_a_shape_is_its_sizes_joined_by_x(sizes, text):
    assert times(sizes) == text
