"""Follow docs/add-a-model-family.md to the letter in a copy of the tree; tests/plugin/ is what it says of plug-ins."""

import pytest
from pages import ROOT, commands, copy_tree, files, run, write

from planner.errors import UnknownName
from planner.models.catalogue import load_config

PAGE = "add-a-model-family.md"
FAMILY, TEST = "models/families/aura_flow.py", "tests/models/families/test_aura_flow.py"


def test_there_is_no_such_model_without_the_page():
    with pytest.raises(UnknownName, match="there is no model 'auraflow"):
        load_config("auraflow-v0.3")


def test_a_family_is_a_file_of_the_tree(tmp_path):
    found = files(PAGE)
    copy_tree(tmp_path)
    write(tmp_path, FAMILY, found[FAMILY])
    write(tmp_path, TEST, found[TEST])
    test, plan = commands(PAGE)
    printed = run(tmp_path, f"{test} -p no:cacheprovider -n 0 -rA")
    assert "test_its_layout_is_text_then_the_image" in printed
    assert "test_parameter_counts_are_those_of_the_public_models[auraflow-v0.3]" in printed
    assert "AuraFlowTransformer2DModel" in run(tmp_path, plan)


def test_the_plug_in_has_the_same_file():
    assert files(PAGE)[FAMILY] == (ROOT / "tests/plugin/planner_slabs/family.py").read_text()
