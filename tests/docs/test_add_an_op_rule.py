"""Follow docs/add-an-op-rule.md to the letter: in a copy of the tree, and as a plug-in."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import planner

ROOT = Path(planner.__file__).parents[1]
PAGE = ROOT / "docs" / "add-an-op-rule.md"


def blocks():
    """The page's code blocks by the file that their first line names."""
    found = re.findall(r"```(?:python|toml)\n# (\S+?)(?:,[^\n]*)?\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == PAGE.read_text().count("```") / 2
    return dict(found)


def run_tests(folder, *arguments):
    """Run a test of the page in a folder, with the package that is there."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


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
    files = blocks()
    shutil.copytree(ROOT / "planner", tmp_path / "planner", symlinks=True)
    for linked in ("codegen", "runtime", "models"):
        (tmp_path / linked).symlink_to(ROOT / linked)
    table = tmp_path / "planner" / "capture" / "ops.py"
    lines = table.read_text().splitlines(keepends=True)
    movements = [number for number, line in enumerate(lines) if line.startswith("_register(Kind.MOVEMENT")]
    lines.insert(movements[-1] + 1, files["planner/capture/ops.py"])
    table.write_text("".join(lines))
    write(tmp_path, "planner/provenance/rules/pooling.py", files["planner/provenance/rules/pooling.py"])
    write(tmp_path, "tests/provenance/test_pooling.py", files["tests/provenance/test_pooling.py"])
    result = run_tests(tmp_path, "tests/provenance/test_pooling.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout


def test_a_rule_is_a_plug_in(tmp_path):
    files = blocks()
    write(tmp_path, "mylib/__init__.py", "")
    write(tmp_path, "mylib/pooling.py", files["planner/provenance/rules/pooling.py"])
    ((group, entries),) = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"].items()
    listed = [f"{name} = {module}" for name, module in entries.items()]
    write(tmp_path, "mylib-1.dist-info/entry_points.txt", "\n".join([f"[{group}]", *listed]))
    write(tmp_path, "mylib-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: mylib\nVersion: 1\n")
    write(tmp_path, "test_pooling.py", files["tests/provenance/test_pooling.py"])
    result = run_tests(tmp_path, "test_pooling.py", "-k", "pooling_keeps or with_padding")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout
