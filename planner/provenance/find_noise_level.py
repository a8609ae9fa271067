"""The noise level: how noisy a model's input is, by its own timestep, from 1 (noise alone) to 0 (an image).

Samplers count steps; networks take a timestep, whatever the sampler, the schedule or the step an edit starts from.
A level is therefore a model's own timestep argument over its range. For flow matching it is sigma.
"""

from __future__ import annotations

import math

import torch

from planner.capture.call import Call, is_same
from planner.capture.ops import op_name
from planner.capture.trace import Capture
from planner.errors import NoNoiseLevel
from planner.plan.noise_level import NoiseLevel

STEPS = 1000
"""Timesteps that models are trained on, and the input of a sinusoidal embedding for noise alone."""

_NAMES = ("timestep", "timesteps", "t")


def find_noise_level(capture: Capture, call: Call, spelling: str | None = None) -> NoiseLevel:
    """Return the noise level of a captured graph: as spelled, or found in how the graph embeds its timestep.

    A timestep that is multiplied by 1000 before its sines are taken runs from 0 to 1; one that is not, to 1000. Raises
    NoNoiseLevel and BadSpelling.
    """
    if spelling is not None:
        level = NoiseLevel.parse(spelling)
        placeholder_of(capture, call, level.argument)
        return level
    names = [name for name, _ in call.tensors if name in _NAMES]
    if not names:
        raise NoNoiseLevel([name for name, _ in call.tensors])
    factor = _factor(placeholder_of(capture, call, names[0]))
    if factor is None:
        raise NoNoiseLevel(names, "the graph takes no sines of it, from which its range could be told")
    return NoiseLevel(names[0], STEPS / factor)


def placeholder_of(capture: Capture, call: Call, argument: str) -> torch.fx.Node:
    """Return the placeholder of a captured graph for an argument of the call; raises NoNoiseLevel."""
    tensors = dict(call.tensors)
    placeholders = [node for node in capture.graph.graph.nodes if node.op == "placeholder"]
    for node, tensor in zip(placeholders, capture.inputs, strict=True):
        if tensor is not None and argument in tensors and is_same(tensor, tensors[argument]):
            return node
    raise NoNoiseLevel(list(tensors), f"{argument} does not come into this graph as a tensor")


def _factor(timestep: torch.fx.Node) -> float | None:
    """Return what a timestep is multiplied by before its sine is taken; None if none is taken."""
    factors, waiting = {timestep: 1.0}, [timestep]
    while waiting:
        node = waiting.pop(0)
        for user in node.users:
            name = op_name(user.target)
            if name in ("sin", "cos"):
                return factors[node]
            if user not in factors and user.op == "call_function":
                constants = [x for x in user.args if isinstance(x, int | float)] if name == "mul" else []
                factors[user] = factors[node] * math.prod(constants)
                waiting.append(user)
    return None
