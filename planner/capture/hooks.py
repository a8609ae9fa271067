"""Hooks: what torch, accelerate and diffusers hang on modules, left out while tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch

Model = TypeVar("Model", bound=torch.nn.Module)


def uncompiled(model: Model) -> Model:
    """Return another object that shares everything with a model, but for what it was compiled to."""
    plain = object.__new__(type(model))
    vars(plain).update({name: value for name, value in vars(model).items() if not name.startswith("__")})
    vars(plain)["_compiled_call_impl"] = None
    return plain


def is_hooked(module: torch.nn.Module) -> bool:
    """Tell whether accelerate or diffusers do something before or after a module runs."""
    attributes = module.__dict__
    return "_hf_hook" in attributes or ("_diffusers_hook" in attributes and bool(attributes["_diffusers_hook"].hooks))


def execution_device(inputs: Sequence[torch.Tensor]) -> torch.device:
    """Return where a model runs whose weights are elsewhere until they are needed: where its inputs are."""
    return next((x.device for x in inputs if x.device.type not in ("cpu", "meta")), torch.device("cpu"))


@contextlib.contextmanager
def without_hooks(model: torch.nn.Module, hooked: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Run a model without its modules' hooks and its collectives while open; hooked: the modules that have hooks."""
    forwards = {module: vars(module).pop("forward") for module in hooked if "forward" in vars(module)}
    processors: list[Any] = [module.processor for module in model.modules() if hasattr(module, "processor")]
    configs = [(each, each._parallel_config) for each in processors if getattr(each, "_parallel_config", None)]
    for processor, _ in configs:
        processor._parallel_config = None
    try:
        yield
    finally:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        for processor, config in configs:
            processor._parallel_config = config
