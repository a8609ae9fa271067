"""Quality of planned attention: the reference models on held-out prompts, dense against uniform GRAT-B and GRAT-X.

    python -m bench.quality emoji-flux
    python -m bench.quality emoji-hunyuan
    python -m bench.quality emoji-flux --size 256

Dense and planned run the same weights, seeds and prompts through planner.compile. The image shows six prompts: a row
of dense samples, then a row for each row of the table. Needs the text encoder, the emoji
pictures (fetched if need be), and hours on a CPU; minutes on a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import planner
from bench.protocol import RESULTS, publish
from planner.errors import PatternCoversAll
from planner.models.emoji.data.naming import is_held_out, toneless
from planner.models.emoji.data.scenes import paint, simple_scene
from planner.models.emoji.data.sprites import Sprites, clips, images
from planner.models.emoji.drawing import save_grid
from planner.models.emoji.reference import SHIPPED, load, load_scorer
from planner.models.emoji.sampling import Pipeline
from planner.models.emoji.text import TextEncoder
from planner.models.metrics.images import as_images, compare

GROUPS = {2: ("8x8", "16x16"), 3: ("2x8x8", "4x8x8")}
CRISSCROSS = {2: ("crisscross",), 3: ("crisscross{axes=lines}", "crisscross{axes=planes}")}
SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SHIPPED))
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--size", type=int, help="side in pixels, in place of the model's own")
    parser.add_argument("--pattern", action="append", help="measure this pattern only; may be given more than once")
    parser.add_argument("--group", action="append", help="measure this group only; may be given more than once")
    parser.add_argument("--weights", type=Path, help="weights of a training run, in place of those shipped")
    parser.add_argument("--scorer", type=Path, help="the scorer of a training run, in place of the one shipped")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pipeline = load(options.model, device=device, dtype=dtype, folder=options.weights).pipeline
    shape = pipeline.shape if options.size is None else (*pipeline.shape[:-2], options.size, options.size)
    encoder, scorer = TextEncoder(device), load_scorer(device, options.scorer)
    prompts, painted = held_out(shape, options.count, device)
    pooled, real = encoder(prompts).pooled, (as_images(painted) + 1) / 2
    sampler = Pipeline(pipeline.transformer, pipeline.scheduler, encoder, shape, pipeline.guidance, options.steps)

    dense, dense_seconds, _, _ = _sample(sampler, prompts, options.batch, {"pattern": "dense"})
    rows, shown = list[dict[str, Any]](), [dense[:SHOWN]]
    axes = len(shape) - 1
    for pattern in options.pattern or (*CRISSCROSS[axes], "neighborhood{radius=1}", "neighborhood{radius=2}"):
        for group in options.group or GROUPS[axes]:
            try:
                planned, seconds, spelling, density = _sample(
                    sampler, prompts, options.batch, {"pattern": pattern, "group": group}
                )
            except PatternCoversAll:
                print(f"{pattern} with groups of {group} reads everything at this size: dense", flush=True)
                continue
            quality = compare(planned, dense, real, pooled, scorer)
            rows.append(
                {"pattern": spelling, "density": density, **asdict(quality), "speedup": dense_seconds / seconds}
            )
            shown.append(planned[:SHOWN])
            print(rows[-1], flush=True)
    name = f"quality-{options.model}" + (f"-{options.size}px" if options.size else "")
    publish(
        name,
        rows,
        options.out,
        prompts=len(prompts),
        steps=options.steps,
        guidance=pipeline.guidance,
    )
    kind = "webp" if len(shape) == 4 else "png"
    save_grid(options.out / f"{name}.{kind}", torch.cat(shown), columns=len(shown[0]))


def held_out(shape: Sequence[int], count: int, device: str) -> tuple[list[str], torch.Tensor]:
    """Return the prompts of ``count`` held-out emoji, and their images or clips, (count, *shape) in [-1, 1]."""
    is_clip = len(shape) == 4
    sprites = (clips() if is_clip else images()).where(is_held_out).to(device)
    scenes = [simple_scene(sprites, index) for index in _one_of_each(sprites, count)]
    painted = paint(scenes, sprites, shape[-1], shape[1] if is_clip else 1).images
    return [scene.prompt for scene in scenes], painted.view(-1, *shape)


def _one_of_each(sprites: Sprites, count: int) -> list[int]:
    """Choose so many sprites, one of each emoji whatever its skin tones, in the order of their digests: indices."""
    first = {toneless(code): index for index, code in reversed(list(enumerate(sprites.codes)))}
    return sorted(first.values(), key=lambda index: hashlib.sha256(sprites.codes[index].encode()).digest())[:count]


def _sample(
    pipeline: Pipeline, prompts: Sequence[str], batch: int, options: dict[str, Any]
) -> tuple[torch.Tensor, float, str, float]:
    """Sample all prompts: (samples, seconds after the first batch, pattern and density of the planned sites)."""
    compiled = planner.compile(pipeline.transformer, min_speedup=0.0, target="h100", **options)
    planned, samples, seconds = pipeline.using(compiled), list[torch.Tensor](), list[float]()
    for first in range(0, len(prompts), batch):
        start, seeds = time.perf_counter(), range(first, first + len(prompts[first : first + batch]))
        samples.append(planned(prompts[first : first + batch], seeds=seeds))
        if samples[-1].is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    decisions = planner.report(compiled).plans[0].decisions
    pattern, density = next(((d.pattern, d.density) for d in decisions if d.is_sparse), ("dense", 1.0))
    return torch.cat(samples), sum(seconds[1:] or seconds), pattern, density


if __name__ == "__main__":
    main()
