from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadPlanFile
from planner.plan.serialization import MAX_FLOAT, MAX_INT, Signed, from_json, read_text, to_json


@dataclass(frozen=True)
class Leaf:
    name: str | None
    on: bool
    shift: Signed = 0.0


@dataclass(frozen=True)
class Tree:
    count: int
    size: float
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, tuple[float, ...]]


numbers = st.floats(0, MAX_FLOAT, exclude_max=True)
leaves = st.builds(Leaf, st.none() | st.text(), st.booleans(), st.floats(-1e20, 1e20))
trees = st.builds(
    Tree,
    st.integers(0, MAX_INT - 1),
    numbers,
    st.lists(leaves, max_size=3).map(tuple),
    st.dictionaries(st.text(), st.lists(numbers, max_size=3).map(tuple), max_size=3),
)


@given(trees)
def test_values_survive_json(tree):
    assert from_json(to_json(tree), Tree, "tree") == tree


def test_a_whole_number_is_a_float_and_nothing_else_is_what_it_is_not():
    tree = from_json('{"count": 1, "size": 2, "leaves": [], "by_name": {}}', Tree, "tree")
    assert (type(tree.count), type(tree.size)) == (int, float)


@pytest.mark.parametrize(
    ("field", "text", "fault"),
    [
        ("count", "true", "'count' is no int in range"),
        ("count", "2.0", "'count' is no int in range"),
        ("count", str(MAX_INT), "'count' is no int in range"),
        ("size", "false", "'size' is no float in range"),
        ("size", "null", "'size' is no float in range"),
        ("size", "-1e-9", "'size' is no float in range"),
        ("size", "1e999", "'size' is no float in range"),
        ("size", "Infinity", "it holds Infinity"),
        ("leaves", "{}", "'leaves' is not a list"),
        ("leaves", "[[]]", "'leaves[0]' is not an object"),
        ("leaves", '[{"name": 1, "on": true, "shift": 0}]', "'name' is no str in range, at leaves[0]"),
        ("leaves", '[{"name": null, "on": 1, "shift": 0}]', "'on' is no bool, at leaves[0]"),
        ("leaves", '[{"name": null, "on": true}]', "name, on, shift; 'shift' is missing, at leaves[0]"),
        ("leaves", '[{"name": null, "name": "a", "on": true, "shift": 0}]', "it repeats 'name'"),
        ("by_name", "[]", "'by_name' is not an object"),
        ("by_name", '{"a": 1}', "\"by_name['a']\" is not a list"),
        ("by_name", '{"a": [1, "2"]}', "\"by_name['a'][1]\" is no float in range"),
        ("by_name", f'{{"{"a" * 70_000}": []}}', "'by_name' is no str in range"),
        ("other", "1", "'other' is none of them"),
    ],
)
def test_what_is_no_value_is_refused_with_its_place(field, text, fault):
    fields = {"count": "1", "size": "2", "leaves": "[]", "by_name": "{}", field: text}
    with pytest.raises(BadPlanFile) as error:
        from_json("{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}", Tree, "the file")
    assert f"{fault}." in error.value.found
    assert "'the file'" in str(error.value)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"'])
def test_what_is_no_object_at_all_is_refused(text):
    with pytest.raises(BadPlanFile, match="it is not an object"):
        from_json(text, Tree, "the file")


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadPlanFile, match="it is not text"):
        read_text(tmp_path / "bytes")
