"""A batch of latent images or videos: its extents in tokens, and tensors of its device and dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Latent:
    """A batch of latents: tokens along time, height and width after the model's own patches.

    text: text tokens, None for the number that the model's pipeline pads to.
    """

    batch: int
    t: int
    h: int
    w: int
    device: torch.device
    dtype: torch.dtype
    text: int | None = None

    @property
    def tokens(self) -> int:
        """Count the tokens of one sample."""
        return self.t * self.h * self.w

    def floats(self, *shape: int) -> torch.Tensor:
        """Make a tensor (batch, *shape) of the model's dtype: normal noise, or no values on the meta device."""
        if self.device.type == "meta":
            return torch.empty(self.batch, *shape, device="meta", dtype=self.dtype)
        return torch.randn(self.batch, *shape, device=self.device).to(self.dtype)

    def each(self, value: float) -> torch.Tensor:
        """Make a tensor (batch,) of the model's dtype that holds one value for each sample."""
        return torch.full((self.batch,), value, device=self.device, dtype=self.dtype)

    def timestep(self) -> torch.Tensor:
        """Make the whole-number timesteps (batch,) half way through 1000."""
        return torch.full((self.batch,), 500, device=self.device)
