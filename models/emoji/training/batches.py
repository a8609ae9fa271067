"""Batches of scenes with their prompts: planned in worker processes, painted and embedded ahead of the training."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from planner.models.emoji.data.scenes import Scene, paint, plan_scene
from planner.models.emoji.data.sprites import Sprites
from planner.models.emoji.text import Embeddings, TextEncoder

WORKERS = 6


@dataclass(frozen=True)
class Source:
    """The sprites, shapes and prompts of batches.

    shapes: (frames, size) of the images, one drawn for each batch by weight. pixels: those of a batch, over all its
    frames. emoji: how many a scene has, at random by default. drop: share of the prompts that are emptied.
    """

    sprites: Sprites
    shapes: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    pixels: int
    emoji: int | None = None
    drop: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Images (batch, 3, frames, size, size) in [-1, 1] and the embeddings of their prompts."""

    images: torch.Tensor
    text: Embeddings


@dataclass(frozen=True)
class _Planned:
    scenes: Sequence[Scene]
    starts: np.ndarray
    frames: int
    size: int
    text: dict[str, torch.Tensor]


class _Plans(IterableDataset[_Planned]):
    def __init__(self, source: Source, encoder: TextEncoder, seed: int) -> None:
        self.source, self.encoder, self.seed = source, encoder, seed

    def __iter__(self) -> Iterator[_Planned]:
        source, worker = self.source, get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        shares = np.array(source.weights) / sum(source.weights)
        while True:
            frames, size = source.shapes[rng.choice(len(source.shapes), p=shares)]
            count = max(1, source.pixels // (frames * size**2))
            scenes = [plan_scene(rng, source.sprites, source.emoji) for _ in range(count)]
            prompts = ["" if rng.random() < source.drop else scene.prompt for scene in scenes]
            yield _Planned(scenes, rng.integers(1 << 16, size=count), frames, size, self.encoder.tokenize(prompts))


def batches(source: Source, encoder: TextEncoder, seed: int) -> Generator[Batch, None, None]:
    """Yield batches without end on the encoder's device; close the generator to stop the workers."""
    device, stop = encoder.device, threading.Event()
    ready = queue.Queue[Batch | Exception](maxsize=3)
    sprites = source.sprites.to(device)
    workers = min(WORKERS, os.cpu_count() or 1)
    loader = DataLoader(_Plans(source, encoder, seed), batch_size=None, num_workers=workers)

    def fill() -> None:
        stream = torch.cuda.Stream() if device.type == "cuda" else None
        try:
            for planned in loader:
                with torch.cuda.stream(stream):
                    painted = paint(planned.scenes, sprites, planned.size, planned.frames, planned.starts)
                    batch = Batch(painted.images, encoder.embed(planned.text))
                if stream is not None:
                    stream.synchronize()
                while not stop.is_set():
                    try:
                        ready.put(batch, timeout=1)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
        except Exception as error:  # handed to the caller, who raises it
            ready.put(error)

    threading.Thread(target=fill, daemon=True).start()
    try:
        while True:
            batch = ready.get()
            if isinstance(batch, Exception):
                raise batch
            if device.type == "cuda":
                for tensor in (batch.images, batch.text.tokens, batch.text.pooled):
                    tensor.record_stream(torch.cuda.current_stream())
            yield batch
    finally:
        stop.set()
