import sys

import pytest

from planner.errors import MissingDependency, UnknownName
from planner.models.emoji.data.naming import HELD_OUT, code_points, is_held_out, name_of, toneless


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("1f34e", "red apple"),
        ("1f44b-1f3fb", "waving hand light skin tone"),
        ("0023-fe0f-20e3", "keycap #"),
        ("1f1ef-1f1f5", "flag of Japan"),
        ("1f3f4-e0067-e0062-e0065-e006e-e0067", "flag of England"),
        ("2764-fe0f", "red heart"),
    ],
)
def test_names_are_the_short_names(code, name):
    assert name_of(code) == name


def test_underscores_stand_for_hyphens():
    assert code_points("1f44b_1f3fb.webp") == (0x1F44B, 0x1F3FB)


@pytest.mark.parametrize("code", ["", "picture", "0041", "1f600-1f600"])
def test_what_is_no_emoji_is_refused(code):
    with pytest.raises(UnknownName):
        name_of(code)


def test_skin_tones_are_held_out_together():
    tones = ["1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"]
    for base in range(0x1F440, 0x1F480):
        codes = [f"{base:x}", *[f"{base:x}-{tone}" for tone in tones]]
        assert len({is_held_out(code) for code in codes}) == 1
        assert {toneless(code) for code in codes} == {f"{base:x}"}


def test_about_one_in_sixteen_is_held_out():
    share = sum(is_held_out(f"{code:x}") for code in range(0x1F300, 0x1F300 + 4096)) / 4096
    assert share == pytest.approx(1 / HELD_OUT, abs=0.01)


def test_without_the_emoji_package_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(MissingDependency, match=r"grat-planner\[train\]"):
        name_of("1f34e")
