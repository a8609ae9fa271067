"""Sampling: noise and prompts in, images or clips out, by rectified flow with classifier-free guidance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from planner.errors import BadOption, BadSize
from planner.models.emoji.text import Embeddings
from planner.models.families.base import PIXEL_SPACE, velocity_of


@dataclass(frozen=True)
class Pipeline:
    """A transformer, its scheduler and its prompts, ready to sample.

    embed: prompts to Embeddings. shape: channels, frames if any, height and width of a sample. guidance, steps: the
    defaults of a call.
    """

    transformer: torch.nn.Module
    scheduler: Any
    embed: Callable[[Sequence[str]], Embeddings]
    shape: tuple[int, ...]
    guidance: float = 4.0
    steps: int = 24

    def using(self, transformer: torch.nn.Module) -> Pipeline:
        """Return the pipeline with another transformer: ``pipeline.using(planner.compile(pipeline.transformer))``."""
        return replace(self, transformer=transformer)

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[str],
        *,
        seeds: Iterable[int] | None = None,
        shape: tuple[int, ...] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        each_step: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Sample prompts; return (batch, 3, height, width) or (batch, 3, frames, height, width) in [0, 1].

        seeds: one a prompt, 0, 1, … by default; a sample depends on its own seed alone. guidance: 1 turns
        classifier-free guidance off. each_step: called with the sample after each step. Raises BadOption, BadSize, and
        UnknownPrompt for a prompt that cannot be embedded.
        """
        shape = self.shape if shape is None else shape
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        chosen = list(range(len(prompts)) if seeds is None else seeds)
        fits = len(shape) == len(self.shape) and shape[0] == self.shape[0] and min(shape) >= 1
        if not fits or any(side % PIXEL_SPACE.pixels for side in shape[-2:]):
            spelled = "x".join(map(str, shape))
            raise BadSize(
                spelled, f"a sample has {len(self.shape)} axes and even sides", "Leave shape= out for the model's own."
            )
        if steps < 1:
            raise BadOption("steps", steps, "a number of at least 1")
        if len(chosen) != len(prompts) or not prompts:
            raise BadOption("seeds", chosen, f"one number for each of the {len(prompts)} prompts")
        weight = next(self.transformer.parameters())
        guided = guidance != 1
        text = self.embed(prompts)
        if guided:
            empty = self.embed([""] * len(prompts))
            text = Embeddings(torch.cat([text.tokens, empty.tokens]), torch.cat([text.pooled, empty.pooled]))
        text = text.to(weight.device, weight.dtype)
        x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in chosen])
        x = x.to(weight.device)
        velocity = velocity_of(self.transformer)
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=x.device)
        for timestep in scheduler.timesteps:
            inputs = torch.cat([x, x]) if guided else x
            sigma = (timestep / scheduler.config.num_train_timesteps).to(weight.dtype).expand(len(inputs))
            v = velocity(self.transformer, inputs.to(weight.dtype), sigma, text).float()
            if guided:
                with_text, without = v.chunk(2)
                v = without + guidance * (with_text - without)
            x = scheduler.step(v, timestep, x, return_dict=False)[0]
            if each_step is not None:
                each_step(x)
        return (x.clamp(-1, 1) + 1) / 2
