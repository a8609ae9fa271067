"""A call of a model: its arguments by name, and what is told from them."""

from __future__ import annotations

import copy
import enum
import gc
import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree

from planner.capture.specialization import digest
from planner.shapes import times

_SHARED = torch.Tensor | torch.nn.Module | type | types.FunctionType | types.ModuleType
"""Types whose values a cache and its copy share."""

_STATELESS = bool | int | float | complex | str | bytes | torch.dtype | torch.device | torch.Generator | enum.Enum
"""Types whose values a model cannot write to."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a model, by name, in the order of its signature."""

    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def of(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Bind arguments to the names of ``model.forward``."""
        bound = inspect.signature(model.forward).bind_partial(*args, **kwargs)
        named = dict[str, Any]()
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        return Call(named)

    @cached_property
    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Every tensor of the call, of any shape, with its argument's name: ``hidden_states``, ``image_embeds.1``."""
        return [
            (name + "".join(map(_spell, path)), leaf)
            for name, value in self.arguments.items()
            for path, leaf in pytree.tree_flatten_with_path(value)[0]
            if isinstance(leaf, torch.Tensor)
        ]

    def signature(self) -> str:
        """Spell the tensors' shapes and dtypes and the whole numbers: ``hidden_states=1x96x64 bfloat16, height=8``."""
        tensors = [
            f"{name}={times(tensor.shape) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in self.tensors
        ]
        integers = [f"{name}={value}" for name, value in self.arguments.items() if _is_whole(value)]
        return ", ".join(tensors + integers)

    def devices(self) -> tuple[str, ...]:
        """Return the devices of the call's tensors, each once, sorted."""
        return tuple(sorted({str(tensor.device) for _, tensor in self.tensors}))

    def tensor(self, name: str) -> torch.Tensor:
        """Return the tensor of the call that has this name; raises KeyError."""
        return dict(self.tensors)[name]

    def digest(self, name: str) -> bytes:
        """Return a digest of the values of one tensor of the call; raises KeyError."""
        return digest(self.tensor(name))


def is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether an input of a graph is an argument of the call, perhaps by another object."""
    if tensor is other:
        return True
    if tensor.device.type == "meta" or other.device.type == "meta" or isinstance(tensor, torch.nn.Parameter):
        return False
    return tensor.shape == other.shape and tensor.dtype == other.dtype and tensor.data_ptr() == other.data_ptr() != 0


def holds_caches(arguments: Any) -> bool:
    """Tell whether arguments hold objects that a model may write to."""
    return any(map(_is_cache, pytree.tree_leaves(arguments)))


def with_copied_caches(arguments: Any) -> Any:
    """Return arguments whose caches a traced model may write to, as copies; tensors and modules are shared."""
    return pytree.tree_map(lambda leaf: _copied(leaf) if _is_cache(leaf) else leaf, arguments)


def _is_cache(leaf: Any) -> bool:
    return not (leaf is None or isinstance(leaf, _STATELESS | _SHARED))


def _copied(cache: Any) -> Any:
    """Return a deep copy that shares tensors, modules and functions."""
    waiting, visited, memo = [cache], set[int](), dict[int, Any]()
    while waiting:
        each = waiting.pop()
        if isinstance(each, _SHARED):
            memo[id(each)] = each
        elif id(each) not in visited:
            visited.add(id(each))
            waiting += gc.get_referents(each)
    return copy.deepcopy(cache, memo)


def _spell(key: Any) -> str:
    """Spell one step of a path into nested arguments: ``.1``, ``.name``."""
    return "." + str(getattr(key, "idx", getattr(key, "key", key)))


def _is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number, or nested lists of nothing else."""
    if isinstance(value, list | tuple):
        return bool(value) and len(value) <= 64 and all(map(_is_whole, value))
    return isinstance(value, int) and not isinstance(value, bool)
