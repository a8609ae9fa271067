import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

import planner
from planner.cli import demo
from planner.cli.machine import Usage, others_share
from planner.models.emoji.reference import load


def half_size(name):
    """Load a reference model that samples at half its size, for a quarter of the tokens."""
    made = load(name)
    *rest, height, width = made.pipeline.shape
    return made._replace(pipeline=replace(made.pipeline, shape=(*rest, height // 2, width // 2)))


def half_size_evidence(name):
    """Evidence of that, from one prompt."""
    pipeline = half_size(name).pipeline
    return planner.record(pipeline.transformer, lambda model: pipeline.using(model)(["rocket"], steps=2))


def said_of(said, plan):
    """Read the cells of a plan's row."""
    return re.search(rf"{plan}  .*", said)[0].removeprefix(plan).split()


def test_the_demo_draws_dense_one_pattern_and_a_plan_from_evidence(tmp_path, monkeypatch, capsys):
    sample = demo.Sample("emoji-flux", ("rocket",), 2, "crisscross", "8x8", "demo.png")
    monkeypatch.setattr(demo, "FULL_SIZE", ())
    monkeypatch.setattr(demo, "SAMPLES", (sample,))
    monkeypatch.setattr(demo, "load", half_size)
    monkeypatch.setattr(demo, "load_evidence", half_size_evidence)
    monkeypatch.setattr(demo, "others_share", lambda before, after: 0.0)
    demo.run_demo(tmp_path / "out")
    said = capsys.readouterr().out
    density, _, speedup, psnr, ssim = said_of(said, "one pattern: crisscross 8x8")
    assert speedup.endswith("x")
    chosen = said_of(said, "from evidence")
    assert float(chosen[0].rstrip("%")) <= float(density.rstrip("%")) < 100
    assert float(chosen[-2]) > float(psnr)
    assert float(chosen[-1]) > float(ssim)
    assert "busy" not in said
    with Image.open(tmp_path / "out" / "demo.png") as figure:
        assert figure.width == 2 * 16 + 5 * 256 + 4 * 8


@pytest.mark.parametrize(("others", "is_busy"), [(0.4, True), (0.1, False)])
def test_a_busy_machine_is_told_from_a_quiet_one(tmp_path, monkeypatch, capsys, others, is_busy):
    dense = demo.Run(torch.rand(1, 3, 16, 16), None, 2.0, 0.0)
    planned = demo.Run(torch.rand(1, 3, 16, 16), None, 1.0, others)
    monkeypatch.setattr(demo, "FULL_SIZE", ())
    monkeypatch.setattr(demo, "SAMPLES", demo.SAMPLES[:1])
    monkeypatch.setattr(demo, "_runs", lambda sample: (dense, planned, planned))
    monkeypatch.setattr(demo, "_draw", lambda *figure: None)
    demo.run_demo(tmp_path)
    said = capsys.readouterr().out
    assert ("Other processes had up to 40% of this machine" in said) == is_busy
    assert said_of(said, "from evidence")[2] == ("busy" if is_busy else "2.00x")


def test_what_others_had_of_the_machine_is_what_is_neither_idle_nor_ours():
    before, after = Usage.now(), Usage.now()
    if before is None:
        pytest.skip("the machine does not say how busy it is")
    assert 0 <= others_share(before, after) <= 1
    assert others_share(None, after) == 0
