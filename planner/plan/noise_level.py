"""The noise level of a call: a model's own timestep argument over its range, from 1 (noise alone) to 0 (an image).

Samplers count steps; networks are told a timestep, whatever the sampler, the schedule or the step an edit starts from.
For flow matching the level is sigma.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from planner.errors import BadSpelling


@dataclass(frozen=True)
class NoiseLevel:
    """An argument that tells a model's noise level: ``timestep/1000``, or ``1-timestep`` where time runs backwards.

    full: the argument's range; a level is argument / full, or 1 - argument / full if reversed.
    """

    argument: str
    full: float = 1.0
    reversed: bool = False

    def of(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the level of the noisiest of timesteps (any shape), () float32 where they live."""
        timesteps = timesteps.to(torch.float32)
        return 1 - timesteps.amin() / self.full if self.reversed else timesteps.amax() / self.full

    @staticmethod
    def parse(text: str) -> NoiseLevel:
        """Read a spelling; ``NoiseLevel.parse(str(level)) == level``. Raises BadSpelling."""
        match = re.fullmatch(r"(1\s*-\s*)?([A-Za-z_]\w{0,63})\s*(?:/\s*(\d{1,9}(?:\.\d{1,9})?))?", text.strip())
        full = float(match[3] or 1) if match else 0.0
        if match is None or full <= 0:
            raise BadSpelling("noise level", text, "it is no argument of the model over its range", "timestep/1000")
        return NoiseLevel(match[2], full, match[1] is not None)

    def __str__(self) -> str:
        full = int(self.full) if self.full == int(self.full) else self.full
        return f"{'1-' * self.reversed}{self.argument}{'' if full == 1 else f'/{full}'}"
