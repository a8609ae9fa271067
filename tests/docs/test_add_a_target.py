"""Follow docs/add-a-target.md to the letter in a copy of the tree."""

import pytest
from pages import commands, copy_tree, files, insert_after, run, write

from planner.errors import UnknownName
from planner.plan.target import Target

PAGE = "add-a-target.md"


def test_there_is_no_such_target_without_the_page():
    with pytest.raises(UnknownName, match="there is no target 'l40s'"):
        Target.named("l40s")


def test_a_target_is_a_line_of_the_tree(tmp_path):
    found = files(PAGE)
    copy_tree(tmp_path)
    insert_after(tmp_path, "planner/plan/target.py", '*_gpu("rtx', found["planner/plan/target.py"])
    write(tmp_path, "tests/plan/test_l40s.py", found["tests/plan/test_l40s.py"])
    test, plan = commands(PAGE)
    assert "passed" in run(tmp_path, f"{test} -p no:cacheprovider -n 0")
    assert "crisscross" in run(tmp_path, plan)
