"""A plug-in in a package of its own, installed where nothing else is: what it adds works, and without it does not."""

import shutil
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from pages import ROOT, files, install, run

PLUGIN = Path(__file__).parent
PYPROJECT = (PLUGIN / "pyproject.toml").read_text()
CHECK = "python -m pytest -p no:cacheprovider --import-mode=importlib -q"


@pytest.fixture
def package(tmp_path):
    """Make a folder with the package and its checks, as they are before the package is installed."""
    shutil.copytree(PLUGIN / "planner_slabs", tmp_path / "planner_slabs")
    for checks in PLUGIN.glob("check_*.py"):
        shutil.copy(checks, tmp_path)
    return tmp_path


@pytest.fixture
def installed(package):
    install(PYPROJECT, package)
    return package


def test_every_part_of_an_installed_plug_in_works(installed):
    run(installed, f"{CHECK} check_slabs.py", installed, ROOT)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_its_kernel_body_computes_what_the_mask_says(installed):
    run(installed, f"{CHECK} check_body.py", installed, ROOT, TRITON_INTERPRET="1")


def test_without_its_entry_points_its_names_are_unknown(package):
    printed = run(package, f"{CHECK} check_slabs.py", package, ROOT, status=1)
    assert "UnknownName: there is no pattern 'slab'" in printed
    assert "UnknownName: there is no target 'four-cores'" in printed
    assert "passed" not in printed


def test_the_page_on_patterns_shows_this_package():
    found = files("add-a-pattern.md")
    assert found["planner/patterns/slab.py"] == (PLUGIN / "planner_slabs" / "slab.py").read_text()
    shown, own = (tomllib.loads(text)["project"] for text in (found["pyproject.toml"], PYPROJECT))
    (group,) = shown["entry-points"]
    assert shown["name"] == own["name"]
    assert shown["entry-points"][group].items() <= own["entry-points"][group].items()
