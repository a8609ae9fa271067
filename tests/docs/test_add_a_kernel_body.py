"""Follow docs/add-a-kernel-body.md to the letter in a copy of the tree; tests/plugin/ is what it says of plug-ins."""

from importlib.util import find_spec

import pytest
from pages import ROOT, commands, copy_tree, files, run, write

PAGE = "add-a-kernel-body.md"
BODY, TEST = "codegen/emit/slabs.py", "tests/interpreted/test_slabs.py"
PATTERN = "planner/patterns/slab.py"


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_a_body_is_a_file_of_the_tree(tmp_path):
    copy_tree(tmp_path)
    write(tmp_path, PATTERN, files("add-a-pattern.md")[PATTERN])
    for name in (BODY, TEST):
        write(tmp_path, name, files(PAGE)[name])
    (command,) = commands(PAGE)
    assert "3 passed" in run(tmp_path, f"{command} -p no:cacheprovider -n 0")


def test_the_plug_in_has_the_same_file():
    body = (ROOT / "tests/plugin/planner_slabs/body.py").read_text()
    assert files(PAGE)[BODY] == body.replace("from planner_slabs.slab", "from planner.patterns.slab")
