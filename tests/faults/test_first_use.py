"""What a new user meets: missing extras, folders that are not there, options that contradict, names in tables."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import planner
from planner.cli import render
from planner.cli.tuning import show_site
from planner.errors import BadEvidence, BadOption, MissingDependency, UnknownName
from planner.extras import EXTRAS, require
from planner.plan.evidence import Evidence

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"PIL": "pillow", "safetensors": "diffusers"}
"""Distributions that bring a module of another name."""


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items())
def test_an_extra_brings_what_it_is_said_to(module, extra):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    name = DISTRIBUTIONS.get(module, module.replace("_", "-"))
    assert any(each.startswith(name) for each in extras[extra])


def test_a_missing_module_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"needed for drawing(.|\n)*Install grat-planner\[train\]"):
        require("matplotlib.figure", "drawing")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        require("no_such_module", "nothing")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("diffusers", "plan flux.1-dev"),
        ("PIL", "demo"),
        ("safetensors", "pareto e.safetensors"),
        ("triton", "kernels p.json"),
    ],
)
def test_a_command_without_its_extra_says_how_to_get_it(module, command, tmp_path):
    code = f"import sys; sys.modules[{module!r}] = None; from planner.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"MissingDependency: {module} is needed")
    assert f"Install grat-planner[{EXTRAS[module]}]." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["plan emoji-flux", "calibrate emoji-flux", "tune emoji-flux --psnr 30", "pareto e.safetensors"],
)
def test_a_folder_that_is_not_there_is_refused_before_any_work(command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["planner", *command.split(), "-o", "nowhere/result"])
    monkeypatch.setattr("planner.models.catalogue.build", None)  # building a model would fail
    with pytest.raises(SystemExit) as end:
        planner.cli.main()
    assert end.value.code == 2
    assert "output takes a file in a folder that exists, which nowhere does not" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [{"density": 0.3}, {"speedup": 2.0}])
def test_a_budget_of_a_dense_plan_is_a_contradiction(budget):
    with pytest.raises(BadOption, match="nothing where pattern=dense leaves nothing to choose"):
        planner.make_plan(Blocks(), INPUTS, pattern="dense", target="cpu", **budget)


INPUTS = torch.randn(1, 8, 16, 16), torch.randn(1, 5, 8)


class Blocks(torch.nn.Module):
    """Two blocks with self- and cross-attention, numbered as diffusers numbers them."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({"attn1": Attention(), "attn2": Attention()}) for _ in "ab"
        )

    def forward(self, image, text):
        tokens = image.flatten(2).mT[:, None]
        for block in self.blocks:
            tokens = block["attn2"](block["attn1"](tokens, tokens), text[:, None])
        return tokens


class Attention(torch.nn.Module):
    """Attention without weights."""

    def forward(self, queries, keys):
        return F.scaled_dot_product_attention(queries, keys, keys)


@pytest.fixture(scope="module")
def plan():
    return planner.make_plan(Blocks(), INPUTS, pattern="crisscross", group="4x4", target="cpu", min_speedup=0)


def test_explain_takes_the_names_that_tables_print(plan):
    names = [name for name, _ in render.grouped(plan.decisions)]
    assert names == ["blocks.*.attn1", "blocks.*.attn2"]
    assert [render.site_named(plan, name).site for name in names] == ["blocks.0.attn1", "blocks.0.attn2"]
    assert render.site_named(plan, "blocks.1.attn2").site == "blocks.1.attn2"
    with pytest.raises(UnknownName, match=r"Did you mean 'blocks\.\*\.attn"):
        render.site_named(plan, "blocks.*.attn")


def test_evidence_of_another_model_or_size_explains_nothing(plan):
    for other in (replace(plan, model="Other"), replace(plan, inputs="image=1x8x32x32 float32")):
        with pytest.raises(BadEvidence, match=f"It was recorded of a {other.model} with inputs {other.inputs}"):
            show_site(Evidence(other, (), (), {}, {}), plan, "blocks.0.attn1")
