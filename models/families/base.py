"""Model families: how a model class of diffusers takes its inputs, and the public models of that class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from planner.errors import UnknownName
from planner.registry import Registry

if TYPE_CHECKING:
    import torch

    from planner.models.emoji.text import Embeddings
    from planner.models.families.latent import Latent

Config: TypeAlias = Mapping[str, Any]
"""The content of a diffusers config.json."""

Velocity: TypeAlias = "Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, Embeddings], torch.Tensor]"
"""(model, x, sigma, text) to the velocity that the model predicts of samples in pixel space.

x: (batch, 3, [frames,] height, width) in [-1, 1] plus noise. sigma: (batch,), 1 is pure noise. Returns the shape of x.
"""


@dataclass(frozen=True)
class Family:
    """How a model class takes its inputs.

    inputs: the keyword arguments of its forward, for a configuration and a batch of latents. pixels: pixels along
    height and width that make one token. frames: the first frame makes a token, and so many after it each make
    another. video: whether it takes frames. velocity: how it is sampled in pixel space, where it has trained weights.
    """

    inputs: Callable[[Config, Latent], dict[str, Any]]
    pixels: int = 16
    frames: int = 1
    video: bool = False
    velocity: Velocity | None = None


@dataclass(frozen=True)
class Scale:
    """How large the inputs of a model are: pixels and frames that make one token along each axis, and text tokens."""

    pixels: int
    frames: int
    text: int


@dataclass(frozen=True)
class Entry:
    """A model by name: its class, its configuration without "_class_name", and its parameters.

    size, frames: what is planned by default, (width, height) in pixels. trained: whether weights for it are published
    with the package. scale: where it differs from that of the family.
    """

    class_name: str
    config: Config
    parameters: int
    size: tuple[int, int]
    frames: int = 1
    trained: bool = False
    scale: Scale | None = None


FAMILIES: Registry[Family] = Registry("model family", ["planner.models.families"])
"""Families by the name of their diffusers class."""

CATALOGUE: Registry[Entry] = Registry("model", ["planner.models.families"])
"""Models by name."""

PIXEL_SPACE = Scale(pixels=2, frames=1, text=64)
"""The scale of the small trained models: patches of 2 by 2 pixels, and 64 tokens of text."""


def velocity_of(model: torch.nn.Module) -> Velocity:
    """Return the velocity function of a model's family; raises UnknownName for a class without one."""
    name = type(model).__name__
    known = {key: family.velocity for key, family in FAMILIES.items() if family.velocity is not None}
    if name not in known:
        raise UnknownName("family with a velocity", name, known)
    return known[name]
