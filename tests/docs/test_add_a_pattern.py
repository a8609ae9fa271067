"""Follow docs/add-a-pattern.md to the letter in a copy of the tree; tests/plugin/ is what it says of plug-ins."""

import pytest
from pages import commands, copy_tree, files, run, write

from planner.errors import UnknownName
from planner.patterns.spelling import parse_pattern

PAGE = "add-a-pattern.md"
PATTERN, TEST = "planner/patterns/slab.py", "tests/patterns/test_slab.py"


def test_there_is_no_such_pattern_without_the_page():
    with pytest.raises(UnknownName, match="there is no pattern 'slab'"):
        parse_pattern("slab{axis=0,group=8x8}")


def test_a_pattern_is_a_file_of_the_tree(tmp_path):
    copy_tree(tmp_path)
    for name in (PATTERN, TEST):
        write(tmp_path, name, files(PAGE)[name])
    (command,) = commands(PAGE)
    printed = run(tmp_path, f"{command} -p no:cacheprovider -n 0 -rA")
    assert "test_a_model_follows_slabs" in printed
    assert "test_the_boxes_of_every_kind_are_its_mask[slab]" in printed
