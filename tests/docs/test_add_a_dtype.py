"""Follow docs/add-a-dtype.md to the letter in a copy of the tree."""

import pytest
from pages import commands, copy_tree, files, insert_after, run, write

from planner.codegen.spec.dtypes import Dtypes
from planner.errors import UnknownName

PAGE = "add-a-dtype.md"
TABLE, TEST = "codegen/spec/dtypes.py", "tests/codegen/spec/test_float8.py"


def test_there_is_no_such_dtype_without_the_page():
    with pytest.raises(UnknownName, match="there is no dtype 'float8_e4m3fn'"):
        Dtypes.parse("bfloat16{k=float8_e4m3fn}")


def test_a_dtype_is_a_line_of_the_tree(tmp_path):
    found = files(PAGE)
    copy_tree(tmp_path)
    insert_after(tmp_path, TABLE, 'Dtype("float16"', found[TABLE])
    write(tmp_path, TEST, found[TEST])
    (command,) = commands(PAGE)
    assert "passed" in run(tmp_path, f"{command} -p no:cacheprovider -n 0")
