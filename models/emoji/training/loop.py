"""The training loop that both generators share: rectified flow, bf16, EMA, checkpoints, curves and sample grids."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from planner.models.catalogue import build
from planner.models.emoji.data.sprites import Sprites
from planner.models.emoji.drawing import save_grid
from planner.models.emoji.sampling import Pipeline
from planner.models.emoji.text import Embeddings, TextEncoder
from planner.models.emoji.training.batches import Source, batches
from planner.models.emoji.training.curve import save_curve
from planner.models.families.base import FAMILIES, velocity_of
from planner.plan.atomic_write import replacing, write_text

DROP_PROMPT = 0.1
EMA = 0.9995
CLIP_NORM = 1.0
SHIFT = 3.0
"""Factor by which noise levels, in training and sampling, lean towards noise: neighbouring pixels are redundant."""
COOLDOWN = 0.6
"""Share of the last stage over which the learning rate falls to zero."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training: (frames, size) of its images with their weights, pixels of a batch, learning rate."""

    shapes: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    pixels: int
    rate: float


@dataclass(frozen=True)
class Recipe:
    """The training of one model: its configuration, data, stages by name, and the prompts of its sample grids.

    emoji: how many a scene has, at random by default. prepare: called with the model before it is compiled.
    """

    config: dict[str, Any]
    sprites: Sprites
    stages: dict[str, Stage]
    grid_prompts: Sequence[str]
    emoji: int | None = None
    prepare: Callable[[torch.nn.Module], None] | None = None


def arguments(description: str, stages: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of a training script."""

    def schedule(text: str) -> list[tuple[str, float]]:
        parts = [re.fullmatch(r"([\w]+)=(\d+)", part) for part in text.split(",")]
        if not all(part and part[1] in stages for part in parts):
            raise argparse.ArgumentTypeError(f"write it like {stages[0]}=600; stages: {', '.join(stages)}")
        return [(part[1], float(part[2])) for part in parts if part]

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--schedule", type=schedule, required=True, help="stages and their seconds: 64px=600,128px=300")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, weights, loss curve and grids go here")
    parser.add_argument("--resume", type=Path, help="a folder with checkpoint.pt, or with weights alone")
    parser.add_argument("--last", action="store_true", help="let the rate fall to zero at the end of the last stage")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


class Trainer:
    """A model in training: its weights, their moving average, the optimisers, and its progress."""

    def __init__(self, config: dict[str, Any], device: str) -> None:
        torch.manual_seed(0)
        self.config = config
        self.device = torch.device(device)
        self.model = build(config, device="cpu").train().to(self.device)
        self.velocity = velocity_of(self.model)
        self.parameters = list(self.model.parameters())
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizers = _optimizers(self.model)
        self.progress: dict[str, float] = {"steps": 0, "samples": 0, "seconds": 0.0}
        self.curve = list[dict[str, float]]()
        self.stages = list[dict[str, Any]]()

    @property
    def is_video(self) -> bool:
        """Whether the model takes frames."""
        return FAMILIES[type(self.model).__name__].video

    def step(self, images: torch.Tensor, text: Embeddings, rate: float) -> torch.Tensor:
        """Take one step on images (batch, 3, frames, size, size) in [-1, 1]; return the loss, () on the device."""
        x = images if self.is_video else images.squeeze(2)
        sigma = _noise_levels(len(x), self.device)
        wide = sigma.view(-1, *[1] * (x.dim() - 1))
        noise = torch.randn_like(x)
        with torch.autocast(self.device.type, torch.bfloat16):
            v = self.velocity(self.model, (1 - wide) * x + wide * noise, sigma, text)
        loss = (v.float() - (noise - x)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.progress["steps"] += 1
        self.progress["samples"] += len(x)
        decay = min(EMA, (1 + self.progress["steps"]) / (10 + self.progress["steps"]))
        get_ema_multi_avg_fn(decay)(self.ema, [parameter.detach() for parameter in self.parameters], 0)
        return loss.detach()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[torch.nn.Module]:
        """Lend the model with its averaged weights, for as long as the context lasts."""
        current = [parameter.detach().clone() for parameter in self.parameters]
        _copy(self.ema, self.parameters)
        try:
            yield self.model.eval()
        finally:
            _copy(current, self.parameters)
            self.model.train()

    def save(self, out: Path) -> None:
        """Write the checkpoint, the averaged weights in bf16, and the loss curve."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": self.progress,
            "curve": self.curve,
            "stages": self.stages,
        }
        with replacing(out / "checkpoint.pt") as scratch:
            torch.save(state, scratch)
        plain = build(self.config, device="cpu")
        with self.averaged() as model:
            plain.load_state_dict(model.state_dict())
        plain.to(torch.bfloat16).save_pretrained(out / "transformer")  # type: ignore[operator]
        FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(out / "scheduler")
        history = {"progress": self.progress, "stages": self.stages, "curve": self.curve}
        write_text(out / "training.json", json.dumps(history) + "\n")
        save_curve(out / "loss.png", self.curve)

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint, or from averaged weights alone with fresh optimisers."""
        if (folder / "checkpoint.pt").exists():
            state = torch.load(folder / "checkpoint.pt", map_location=self.device)
            self.model.load_state_dict(state["model"])
            _copy(state["ema"], self.ema)
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        else:
            state = json.loads((folder / "training.json").read_text())
            weights = type(self.model).from_pretrained(folder / "transformer")  # type: ignore[attr-defined]
            self.model.load_state_dict(weights.state_dict())
            _copy(self.parameters, self.ema)
        self.progress, self.curve, self.stages = state["progress"], state["curve"], state["stages"]


def train(recipe: Recipe, options: argparse.Namespace) -> None:
    """Train through the schedule, from where --resume left off, and write everything to --out after each stage."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("high")
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe.config, options.device)
    if options.resume:
        trainer.resume(options.resume)
    if recipe.prepare is not None:
        recipe.prepare(trainer.model)
    encoder = TextEncoder(options.device)
    if not options.no_compile:
        torch._dynamo.config.recompile_limit = 64
        trainer.model.compile_repeated_blocks(fullgraph=True, dynamic=False)  # type: ignore[operator]
    for index, (name, seconds) in enumerate(options.schedule):
        cooldown = COOLDOWN if options.last and index == len(options.schedule) - 1 else 0.0
        _run_stage(trainer, recipe, name, seconds, cooldown, encoder)
        trainer.save(options.out)
        grid = options.out / f"grid-{name}.{'webp' if trainer.is_video else 'png'}"
        _draw(trainer, encoder, recipe.grid_prompts, recipe.stages[name], grid)


def _run_stage(
    trainer: Trainer, recipe: Recipe, name: str, seconds: float, cooldown: float, encoder: TextEncoder
) -> None:
    stage, before = recipe.stages[name], dict(trainer.progress)
    source = Source(recipe.sprites, stage.shapes, stage.weights, stage.pixels, recipe.emoji, DROP_PROMPT)
    torch.manual_seed(int(before["steps"]))
    start, losses = time.monotonic(), list[torch.Tensor]()
    with contextlib.closing(batches(source, encoder, int(before["steps"]))) as stream:
        for batch in stream:
            passed = time.monotonic() - start
            if passed >= seconds:
                break
            warm = min(1.0, (1 + trainer.progress["steps"] - before["steps"]) / 200)
            left = (1 - passed / seconds) / cooldown if cooldown else 1.0
            losses.append(trainer.step(batch.images, batch.text, stage.rate * warm * min(1.0, left)))
            if len(losses) == 50:
                trainer.progress["seconds"] = before["seconds"] + passed
                trainer.curve.append({**trainer.progress, "loss": float(torch.stack(losses).mean())})
                losses.clear()
                rate = (trainer.progress["samples"] - before["samples"]) / (time.monotonic() - start)
                print(f"{name}: {trainer.curve[-1]}, {rate:.0f} pictures a second", flush=True)
    trainer.progress["seconds"] = before["seconds"] + time.monotonic() - start
    progress = {key: trainer.progress[key] - before[key] for key in trainer.progress}
    device = torch.cuda.get_device_name() if trainer.device.type == "cuda" else str(trainer.device)
    trainer.stages.append({"stage": name, **progress, "rate": stage.rate, "cooldown": cooldown, "device": device})


def _draw(trainer: Trainer, encoder: TextEncoder, prompts: Sequence[str], stage: Stage, path: Path) -> None:
    """Draw a grid of samples of the averaged weights, at the stage's first shape."""
    frames, size = stage.shapes[0]
    shape = (3, frames, size, size) if trainer.is_video else (3, size, size)
    eager = torch.compiler.set_stance("force_eager")
    with trainer.averaged() as model, eager, torch.autocast(trainer.device.type, torch.bfloat16):
        pipeline = Pipeline(model, FlowMatchEulerDiscreteScheduler(shift=SHIFT), encoder, shape)
        parts = [prompts[first : first + 16] for first in range(0, len(prompts), 16)]
        save_grid(path, torch.cat([pipeline(part, seeds=range(len(part))) for part in parts]))


@torch.no_grad()
def _copy(source: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> None:
    for theirs, mine in zip(source, target, strict=True):
        mine.copy_(theirs)


def _noise_levels(count: int, device: torch.device) -> torch.Tensor:
    """Draw logit-normal noise levels in (0, 1), shifted towards noise (Esser et al. 2024, sections 3.1 and 5.3.2)."""
    sigma = torch.sigmoid(torch.randn(count, device=device))
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def _optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of the blocks, AdamW for the rest; one learning rate serves both."""
    matrices, rest = list[torch.nn.Parameter](), list[torch.nn.Parameter]()
    for name, parameter in model.named_parameters():
        (matrices if parameter.dim() == 2 and "transformer_blocks" in name else rest).append(parameter)
    fused = next(model.parameters()).is_cuda
    return [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.97), weight_decay=0.0, fused=fused),
    ]
