from PIL import Image

from planner.cli import demo


def test_the_demo_writes_dense_and_planned_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FULL_SIZE", ())
    samples = (
        demo.Sample("emoji-flux", ("rocket",), 2, "crisscross", "8x8"),
        demo.Sample("emoji-hunyuan", ("rocket",), 2, "neighborhood", "2x8x8"),
    )
    monkeypatch.setattr(demo, "SAMPLES", samples)
    demo.run_demo(tmp_path / "out")
    said = capsys.readouterr().out
    assert "crisscross{axes=lines,group=8x8}" in said
    assert "neighborhood{radius=1,edge=clamp,group=2x8x8}" in said
    assert "4,160" in said
    assert "8,256" in said
    with Image.open(tmp_path / "out" / "demo.png") as picture:
        assert picture.size == (3 * 128, 2 * 128)
    with Image.open(tmp_path / "out" / "demo.webp") as clip:
        assert (clip.size, clip.n_frames) == ((3 * 64, 64), 8)
