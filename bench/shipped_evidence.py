"""Record the evidence that ships with the weights: ``python -m bench.shipped_evidence emoji-flux``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import planner
from planner.models.emoji.reference import DEMO_PROMPTS, EVIDENCE, SHIPPED, load

BATCH = {"emoji-flux": 2, "emoji-hunyuan": 1}
"""Samples at once: evidence holds for calls of one shape, which are those of the demo."""

BATCHES = {"emoji-flux": 5, "emoji-hunyuan": 4}
CALLS = 18
"""Calls that are looked at: enough to come at every noise level, as a sampler's steps repeat with each batch."""


def record_shipped(name: str, device: str, path: Path) -> None:
    """Record evidence of a reference model in float32, on its shipped prompts but those that the demo paints."""
    model, _, pipeline = load(name, device=device)
    prompts = [prompt for prompt in pipeline.embed.prompts if prompt and prompt not in DEMO_PROMPTS[name]]
    size = BATCH[name]

    def sample(model: torch.nn.Module) -> torch.Tensor:
        starts = range(0, size * BATCHES[name], size)
        made = [pipeline.using(model)(prompts[at : at + size], seeds=range(at, at + size)) for at in starts]
        return torch.cat(made)

    planner.record(model, sample, path=path, calls=CALLS, sampler_calls=pipeline.steps * BATCHES[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=SHIPPED)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path(EVIDENCE))
    options = parser.parse_args()
    record_shipped(options.model, options.device, options.out)


if __name__ == "__main__":
    main()
