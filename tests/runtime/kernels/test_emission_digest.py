import importlib
import shutil
import sys

import pytest

from planner.registry import Registry
from planner.runtime.kernels import emission_digest as digests
from planner.runtime.kernels.emission_digest import ROOT, emission_digest, emission_files

NAMES = [path.relative_to(ROOT).as_posix() for path in emission_files()]


def test_emission_depends_on_templates_bodies_and_closed_forms_and_on_nothing_above_them():
    needed = {
        "codegen/emit/hopper/view.py", "codegen/spec/head_table.py", "codegen/tiling/stream_k.py", "errors.py",
        "patterns/axis_set.py", "patterns/crisscross.py", "patterns/groups.py", "runtime/kernels/compile.py",
    }  # fmt: skip
    assert needed <= set(NAMES)
    assert sum(name.endswith(".jinja") for name in NAMES) == len(list((ROOT / "codegen/templates").rglob("*.jinja")))
    assert not [name for name in NAMES if name.startswith(("cli", "models", "search", "capture", "provenance", "api"))]


@pytest.mark.parametrize("name", ["crossing.py", "crossing/__init__.py"])
def test_the_code_of_patterns_of_plug_ins_counts(tmp_path, monkeypatch, name):
    before = emission_digest()
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("class Crossing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(digests, "REGISTRIES", (*digests.REGISTRIES, more := Registry("pattern")))
    more.register("crossing")(importlib.import_module("crossing").Crossing)
    installed = emission_digest()
    path.write_text("class Crossing: ...\n# changed\n")
    assert len({before, installed, emission_digest()}) == 3
    del sys.modules["crossing"]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(digests, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_touched_file_moves_the_key(copied, name):
    before = emission_digest()
    path = copied / name
    path.write_text(path.read_text() + "\n# changed\n")
    assert emission_digest() != before


def test_a_new_module_that_emission_imports_counts_wherever_it_lies(copied):
    before = emission_digest()
    (copied / "elsewhere").mkdir()
    (copied / "elsewhere" / "new.py").write_text("VALUE = 1\n")
    assert emission_digest() == before
    path = copied / "codegen/emit/bodies.py"
    path.write_text("from planner.elsewhere.new import (\n    VALUE,\n)\n" + path.read_text())
    imported = emission_digest()
    (copied / "elsewhere" / "new.py").write_text("VALUE = 2\n")
    assert len({before, imported, emission_digest()}) == 3
