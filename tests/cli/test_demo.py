from dataclasses import replace

from PIL import Image

from planner.cli import demo
from planner.models.emoji.reference import load


def half_size(name):
    """Load a reference model that samples at half its size, for a quarter of the tokens."""
    made = load(name)
    *rest, height, width = made.pipeline.shape
    return made._replace(pipeline=replace(made.pipeline, shape=(*rest, height // 2, width // 2)))


def test_the_demo_writes_dense_and_planned_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FULL_SIZE", ())
    samples = (
        demo.Sample("emoji-flux", ("rocket",), 2, "crisscross", "8x8"),
        demo.Sample("emoji-hunyuan", ("rocket",), 2, "neighborhood", "2x8x8"),
    )
    monkeypatch.setattr(demo, "SAMPLES", samples)
    monkeypatch.setattr(demo, "load", half_size)
    demo.run_demo(tmp_path / "out")
    said = capsys.readouterr().out
    assert "crisscross{axes=lines,group=8x8}" in said
    assert "neighborhood{radius=1,edge=clamp,group=2x8x8}" in said
    assert "1,088" in said
    assert "2,112" in said
    with Image.open(tmp_path / "out" / "demo.png") as picture:
        assert picture.size == (3 * 64, 2 * 64)
    with Image.open(tmp_path / "out" / "demo.webp") as clip:
        assert (clip.size, clip.n_frames) == ((3 * 32, 32), 8)
