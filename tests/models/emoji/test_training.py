import json

import numpy as np
import pytest
import torch

from planner.models.emoji.data.sprites import Sprites
from planner.models.emoji.text import Embeddings
from planner.models.emoji.training import loop
from planner.models.emoji.training.batches import Source, batches
from planner.models.emoji.training.emoji_hunyuan import unmask
from planner.models.emoji.training.loop import Recipe, Stage, Trainer, arguments, train

FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 12,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 384,
    "pooled_projection_dim": 384,
    "guidance_embeds": False,
    "axes_dims_rope": [4, 6, 6],
}
HUNYUAN = {
    "_class_name": "HunyuanVideoTransformer3DModel",
    "in_channels": 3,
    "out_channels": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "qk_norm": "rms_norm",
    "guidance_embeds": False,
    "text_embed_dim": 384,
    "pooled_projection_dim": 384,
    "rope_axes_dim": [4, 6, 6],
}


class FakeEncoder:
    """Embeds a prompt as its length."""

    def __init__(self, device="cpu"):
        self.device = torch.device(device)

    def tokenize(self, prompts):
        return {"lengths": torch.tensor([len(prompt) for prompt in prompts])}

    def embed(self, text):
        pooled = text["lengths"].float()[:, None].expand(-1, 384) / 100
        return Embeddings(pooled[:, None].expand(-1, 64, -1).contiguous(), pooled.contiguous())

    def __call__(self, prompts):
        return self.embed(self.tokenize(prompts))


def sprites(frames=1):
    red, blue = (np.zeros((frames, 32, 32, 4), np.uint8) for _ in range(2))
    red[..., 0], red[..., 3], blue[..., 2], blue[..., 3] = 255, 255, 255, 255
    return Sprites.of({"1f34e": red, "1f680": blue})


def text(count):
    return Embeddings(torch.randn(count, 64, 384), torch.randn(count, 384))


def test_batches_hold_what_the_source_asks_for():
    source = Source(sprites(3), ((2, 16), (1, 32)), (1, 1), pixels=4 * 1024, drop=0.5)
    shapes, lengths = set(), list[float]()
    made = batches(source, FakeEncoder(), 0)
    for _ in range(12):
        batch = next(made)
        shapes.add(tuple(batch.images.shape))
        lengths += batch.text.pooled[:, 0].tolist()
        assert batch.images.abs().max() <= 1 + 1e-5
        assert len(batch.images) == len(batch.text.pooled)
    made.close()
    assert shapes == {(8, 3, 2, 16, 16), (4, 3, 1, 32, 32)}
    assert 0.2 < sum(length == 0 for length in lengths) / len(lengths) < 0.8


def test_a_failure_while_painting_reaches_the_trainer():
    class Broken(FakeEncoder):
        def embed(self, text):
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        next(batches(Source(sprites(), ((1, 16),), (1,), 1024), Broken(), 0))


@pytest.mark.parametrize(("config", "frames"), [(FLUX, 1), (HUNYUAN, 2)])
def test_training_learns_one_image(config, frames):
    torch.manual_seed(0)
    trainer = Trainer(config, "cpu")
    images = torch.full((8, 3, frames, 16, 16), 0.5)
    words = text(8)
    losses = [float(trainer.step(images, words, 3e-3)) for _ in range(40)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert trainer.progress["samples"] == 320


def test_the_average_follows_the_weights_and_gives_them_back():
    trainer = Trainer(FLUX, "cpu")
    start = [parameter.detach().clone() for parameter in trainer.parameters]
    for _ in range(5):
        trainer.step(torch.randn(2, 3, 1, 16, 16), text(2), 1e-2)
    now = [parameter.detach().clone() for parameter in trainer.parameters]
    with trainer.averaged() as model:
        assert not model.training
        for parameter, average in zip(model.parameters(), trainer.ema, strict=True):
            assert torch.equal(parameter, average)
    for parameter, kept in zip(trainer.parameters, now, strict=True):
        assert torch.equal(parameter, kept)
    widest = max(range(len(now)), key=lambda index: now[index].numel())
    assert 0 < (trainer.ema[widest] - start[widest]).norm() < (now[widest] - start[widest]).norm() * 1.5


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_training_resumes(tmp_path, with_checkpoint):
    trainer = Trainer(FLUX, "cpu")
    trainer.step(torch.randn(2, 3, 1, 16, 16), text(2), 1e-2)
    trainer.curve.append({"samples": 2, "loss": 1.0})
    trainer.save(tmp_path)
    if not with_checkpoint:
        (tmp_path / "checkpoint.pt").unlink()
    resumed = Trainer(FLUX, "cpu")
    resumed.resume(tmp_path)
    assert resumed.progress == trainer.progress
    assert resumed.curve == trainer.curve
    source = trainer.parameters if with_checkpoint else trainer.ema
    tolerance = 0 if with_checkpoint else 1e-2
    for mine, theirs in zip(resumed.parameters, source, strict=True):
        assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    resumed.step(torch.randn(2, 3, 1, 16, 16), text(2), 1e-2)


def test_a_schedule_runs_from_the_command_line_to_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "TextEncoder", FakeEncoder)
    monkeypatch.setattr(
        "sys.argv",
        ["train", "--schedule", "small=2,large=1", "--last", "--no-compile", "--device", "cpu", "--out", str(tmp_path)],
    )
    stages = {"small": Stage(((1, 8),), (1,), 4 * 64, 1e-3), "large": Stage(((1, 16),), (1,), 2 * 256, 1e-3)}
    options = arguments("Train.", list(stages))
    train(Recipe(FLUX, sprites(), stages, ["red apple", "rocket"]), options)
    history = json.loads((tmp_path / "training.json").read_text())
    assert [stage["stage"] for stage in history["stages"]] == ["small", "large"]
    assert [stage["cooldown"] for stage in history["stages"]] == [0, loop.COOLDOWN]
    assert history["progress"]["steps"] == sum(stage["steps"] for stage in history["stages"]) > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "grid-large.png",
        "grid-small.png",
        "loss.png",
        "scheduler",
        "training.json",
        "transformer",
    }


@pytest.mark.parametrize("schedule", ["", "64px", "64px=x", "huge=3", "64px=3;128px=4"])
def test_bad_schedules_show_how_to_write_one(schedule, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--out", "x", "--schedule", schedule])
    with pytest.raises(SystemExit):
        arguments("Train.", ["64px", "128px"])
    assert "write it like 64px=600" in capsys.readouterr().err


def test_attention_without_the_mask_is_attention_with_a_mask_of_ones():
    torch.manual_seed(0)
    trainer = Trainer(HUNYUAN, "cpu")
    x, words = torch.randn(1, 3, 2, 8, 8), text(1)
    with torch.no_grad():
        masked = trainer.velocity(trainer.model, x, torch.tensor([0.5]), words)
        unmask(trainer.model)
        assert torch.allclose(trainer.velocity(trainer.model, x, torch.tensor([0.5]), words), masked, atol=1e-5)
