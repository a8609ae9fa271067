"""The catalogue: public full-size and reference configurations by name, built as diffusers classes without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import BadModelFolder, UnknownName

if TYPE_CHECKING:
    import torch

_CONFIGS = Path(__file__).parent / "configs"
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Scale:
    """How large the inputs of a model are: pixels and frames that make one token along each axis, and text tokens."""

    pixels: int
    frames: int
    text: int


@dataclass(frozen=True)
class Entry:
    """A model: its diffusers class, parameters, default size in pixels (width, height) and frames.

    trained: whether the package ships weights. scale: where it is another than that of the class's public models.
    """

    class_name: str
    parameters: int
    size: tuple[int, int]
    frames: int = 1
    trained: bool = False
    scale: Scale | None = None


PIXEL_SPACE = Scale(pixels=2, frames=1, text=64)


CATALOGUE: dict[str, Entry] = {
    "emoji-flux": Entry("FluxTransformer2DModel", 13_154_828, (128, 128), trained=True, scale=PIXEL_SPACE),
    "emoji-hunyuan": Entry("HunyuanVideoTransformer3DModel", 10_428_172, (64, 64), 8, trained=True, scale=PIXEL_SPACE),
    "flux.1-dev": Entry("FluxTransformer2DModel", 11_901_408_320, (1024, 1024)),
    "flux.1-schnell": Entry("FluxTransformer2DModel", 11_891_178_560, (1024, 1024)),
    "sd3.5-large": Entry("SD3Transformer2DModel", 8_056_627_520, (1024, 1024)),
    "qwen-image": Entry("QwenImageTransformer2DModel", 20_430_401_088, (1328, 1328)),
    "hunyuanvideo": Entry("HunyuanVideoTransformer3DModel", 12_821_012_544, (1280, 720), 129),
    "wan2.1-1.3b": Entry("WanTransformer3DModel", 1_418_996_800, (832, 480), 81),
    "wan2.1-14b": Entry("WanTransformer3DModel", 14_288_491_584, (1280, 720), 81),
    "cogvideox-5b": Entry("CogVideoXTransformer3DModel", 5_570_283_072, (720, 480), 49),
    "ltx-video": Entry("LTXVideoTransformer3DModel", 1_923_385_472, (704, 512), 161),
    "mochi": Entry("MochiTransformer3DModel", 10_027_677_744, (848, 480), 163),
}


def load_config(model: str) -> dict[str, Any]:
    """The configuration of a catalogue name, or of a folder with a diffusers config.json.

    Raises UnknownName or BadModelFolder.
    """
    if model in CATALOGUE:
        return _read(_CONFIGS / f"{model}.json")
    if Path(model).is_dir():
        return _read(Path(model) / "config.json")
    raise UnknownName("model", model, CATALOGUE)


def default_size(model: str) -> tuple[tuple[int, int], int]:
    """((width, height), frames) where the caller names none: the model's own, 1024 by 1024 for a folder."""
    entry = CATALOGUE.get(model)
    return (entry.size, entry.frames) if entry else ((1024, 1024), 1)


def scale_of(model: str) -> Scale | None:
    """The scale of a catalogue name where it is its own; None for the scale of its class."""
    entry = CATALOGUE.get(model)
    return entry.scale if entry else None


def build(config: Mapping[str, Any], device: str = "meta", dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A model from its configuration, with random weights, or on the meta device with none. Raises BadModelFolder."""
    import diffusers
    import torch

    name = str(config["_class_name"])
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise BadModelFolder(name, f"diffusers {diffusers.__version__} has no model class {name!r}")
    with torch.device(device):
        model = cls.from_config(dict(config)).eval()  # type: ignore[attr-defined]
    # Not diffusers' own `to`, which warns about casting weights that are not there.
    return model if dtype is None else torch.nn.Module.to(model, dtype)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadModelFolder(str(path.parent), f"config.json: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise BadModelFolder(str(path.parent), "its config.json is larger than 1 MiB")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadModelFolder(str(path.parent), "its config.json is not JSON") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise BadModelFolder(str(path.parent), 'its config.json has no "_class_name"')
    return config
