"""Follow docs/add-an-op-rule.md to the letter: in a copy of the tree, and as a plug-in."""

import pytest
import torch
import torch.nn.functional as F
from pages import ROOT, copy_tree, files, insert_after, install, run, write

import planner

PAGE = "add-an-op-rule.md"
PYTEST = "python -m pytest -p no:cacheprovider"


@pytest.mark.parametrize(
    ("operation", "name"),
    [(lambda x: F.avg_pool2d(x, 2), "avg_pool2d"), (lambda x: F.channel_shuffle(x, 4), "channel_shuffle")],
)
def test_the_operation_has_no_rule_without_the_page(operation, name):
    class Model(torch.nn.Module):
        def forward(self, x):
            tokens = operation(x).flatten(2).mT[:, None]
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    (decision,) = planner.make_plan(Model(), args=(torch.randn(1, 8, 6, 10),)).decisions
    assert f"provenance is lost, probably in {name}; pass layout=" in decision.reason


def test_a_rule_is_a_file_of_the_tree(tmp_path):
    found = files(PAGE)
    copy_tree(tmp_path)
    insert_after(tmp_path, "planner/capture/ops.py", "_register(Kind.MOVEMENT", found["planner/capture/ops.py"])
    write(tmp_path, "planner/provenance/rules/pooling.py", found["planner/provenance/rules/pooling.py"])
    write(tmp_path, "tests/provenance/test_pooling.py", found["tests/provenance/test_pooling.py"])
    assert "3 passed" in run(tmp_path, f"{PYTEST} -n 0 tests/provenance/test_pooling.py")


def test_a_rule_is_a_plug_in(tmp_path):
    found = files(PAGE)
    write(tmp_path, "mylib/__init__.py", "")
    write(tmp_path, "mylib/pooling.py", found["planner/provenance/rules/pooling.py"])
    install(found["pyproject.toml"], tmp_path)
    write(tmp_path, "test_pooling.py", found["tests/provenance/test_pooling.py"])
    printed = run(tmp_path, f"{PYTEST} test_pooling.py -k 'pooling_keeps or with_padding'", tmp_path, ROOT)
    assert "2 passed" in printed
