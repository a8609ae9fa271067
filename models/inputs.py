"""Example inputs: what a pipeline would pass to each model class for one picture or video of a given size.

Tensors that hold pictures or text live on the device asked for (meta: no memory); masks and position ids are real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from planner.errors import BadOption, BadSize, NoExampleInputs
from planner.models.catalogue import Scale

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Latent:
    """A batch of latent pictures: tokens along time, height and width after the model's own patches.

    text: text tokens, where they are not the number that the model's pipeline pads to.
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
        """Tokens of one picture."""
        return self.t * self.h * self.w

    def floats(self, *shape: int) -> torch.Tensor:
        """A tensor of the model's dtype, one row a picture."""
        if self.device.type == "meta":
            return torch.empty(self.batch, *shape, device="meta", dtype=self.dtype)
        return torch.randn(self.batch, *shape, device=self.device).to(self.dtype)

    def timestep(self) -> torch.Tensor:
        """Half way through, one number a picture."""
        return torch.full((self.batch,), 500, device=self.device)


@dataclass(frozen=True)
class Family:
    """How a model class takes its inputs.

    pixels, frames: pixels along height and width, and frames, that make one token. video: whether it takes frames.
    """

    build: Callable[[Config, Latent], dict[str, Any]]
    pixels: int = 16
    frames: int = 1
    video: bool = False


def example_inputs(
    config: Config,
    size: tuple[int, int],
    frames: int = 1,
    *,
    batch: int = 1,
    device: str = "meta",
    dtype: torch.dtype = torch.bfloat16,
    scale: Scale | None = None,
) -> dict[str, Any]:
    """Keyword arguments of the model's forward for pictures of size (width, height) pixels and so many frames.

    scale: pixels and frames of a token and text tokens, where they are not those of the class's public models.
    Raises NoExampleInputs for a class that is not in the table, BadSize for a size that makes no whole tokens, and
    BadOption for frames of a model of still pictures.
    """
    name = str(config["_class_name"])
    if name not in FAMILIES:
        raise NoExampleInputs(name, FAMILIES)
    family, (width, height) = FAMILIES[name], size
    if not 1 <= batch <= 1024:
        raise BadOption("batch", batch, "a number between 1 and 1024")
    if frames != 1 and not family.video:
        raise BadOption("frames", frames, f"1 for {name}, a model of still pictures")
    p, step = (scale.pixels, scale.frames) if scale else (family.pixels, family.frames)
    asked = f"{width}x{height}"
    if width < p or height < p or width % p or height % p:
        near = "x".join(str(max(p, round(side / p) * p)) for side in size)
        raise BadSize(asked, f"{name} takes multiples of {p} pixels", f"The nearest is {near}.")
    if width * height * frames > 2**36:
        raise BadSize(asked, f"{width * height * frames} pixels are more than 2**36", "Ask for a smaller size.")
    if frames < 1 or (frames - 1) % step:
        near = max(0, round((frames - 1) / step)) * step + 1
        raise BadSize(f"{frames} frames", f"{name} takes 1 + a multiple of {step}", f"The nearest is {near}.")
    t, text = (frames - 1) // step + 1, scale.text if scale else None
    latent = Latent(batch, t, height // p, width // p, torch.device(device), dtype, text)
    return family.build(config, latent)


def flux_ids(h: int, w: int) -> torch.Tensor:
    """Position ids (h * w, 3) of a FLUX picture: zero, row, column."""
    ids = torch.zeros(h, w, 3)
    ids[..., 1] += torch.arange(h)[:, None]
    ids[..., 2] += torch.arange(w)[None, :]
    return ids.view(-1, 3)


def _flux(config: Config, x: Latent) -> dict[str, Any]:
    text = x.text or 512
    inputs = {
        "hidden_states": x.floats(x.tokens, config["in_channels"]),
        "encoder_hidden_states": x.floats(text, config["joint_attention_dim"]),
        "pooled_projections": x.floats(config["pooled_projection_dim"]),
        "timestep": torch.full((x.batch,), 0.5, device=x.device, dtype=x.dtype),
        "img_ids": flux_ids(x.h, x.w),
        "txt_ids": torch.zeros(text, 3),
    }
    if config.get("guidance_embeds"):
        inputs["guidance"] = torch.full((x.batch,), 3.5, device=x.device, dtype=x.dtype)
    return inputs


def _sd3(config: Config, x: Latent) -> dict[str, Any]:
    p = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.h * p, x.w * p),
        "encoder_hidden_states": x.floats(333, config["joint_attention_dim"]),
        "pooled_projections": x.floats(config["pooled_projection_dim"]),
        "timestep": x.timestep(),
    }


def _qwen(config: Config, x: Latent) -> dict[str, Any]:
    return {
        "hidden_states": x.floats(x.tokens, config["in_channels"]),
        "encoder_hidden_states": x.floats(512, config["joint_attention_dim"]),
        "encoder_hidden_states_mask": torch.ones(x.batch, 512, dtype=torch.int64),
        "timestep": torch.full((x.batch,), 0.5, device=x.device, dtype=x.dtype),
        "img_shapes": [[(1, x.h, x.w)]] * x.batch,
    }


def _hunyuan(config: Config, x: Latent) -> dict[str, Any]:
    text = x.text or 256
    p, pt = config["patch_size"], config["patch_size_t"]
    inputs = {
        "hidden_states": x.floats(config["in_channels"], x.t * pt, x.h * p, x.w * p),
        "timestep": x.timestep(),
        "encoder_hidden_states": x.floats(text, config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones(x.batch, text, dtype=torch.int64),
        "pooled_projections": x.floats(config["pooled_projection_dim"]),
    }
    if config.get("guidance_embeds"):
        inputs["guidance"] = torch.full((x.batch,), 6000.0, device=x.device, dtype=x.dtype)
    return inputs


def _wan(config: Config, x: Latent) -> dict[str, Any]:
    pt, ph, pw = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.t * pt, x.h * ph, x.w * pw),
        "timestep": x.timestep(),
        "encoder_hidden_states": x.floats(512, config["text_dim"]),
    }


def _cogvideox(config: Config, x: Latent) -> dict[str, Any]:
    p = config["patch_size"]
    inputs: dict[str, Any] = {
        "hidden_states": x.floats(x.t, config["in_channels"], x.h * p, x.w * p),
        "encoder_hidden_states": x.floats(config["max_text_seq_length"], config["text_embed_dim"]),
        "timestep": x.timestep(),
    }
    if config.get("use_rotary_positional_embeddings"):
        table = torch.zeros(x.tokens, config["attention_head_dim"], device=x.device)
        inputs["image_rotary_emb"] = (table.cos(), table.sin())
    return inputs


def _ltx(config: Config, x: Latent) -> dict[str, Any]:
    return {
        "hidden_states": x.floats(x.tokens, config["in_channels"]),
        "encoder_hidden_states": x.floats(128, config["caption_channels"]),
        "timestep": x.timestep(),
        "encoder_attention_mask": torch.ones(x.batch, 128, dtype=torch.int64),
        "num_frames": x.t,
        "height": x.h,
        "width": x.w,
    }


def _mochi(config: Config, x: Latent) -> dict[str, Any]:
    p, text = config["patch_size"], config["max_sequence_length"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.t, x.h * p, x.w * p),
        "encoder_hidden_states": x.floats(text, config["text_embed_dim"]),
        "timestep": x.timestep(),
        "encoder_attention_mask": torch.ones(x.batch, text, dtype=torch.bool),
    }


def _pixart(config: Config, x: Latent) -> dict[str, Any]:
    p = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.h * p, x.w * p),
        "encoder_hidden_states": x.floats(300, config["caption_channels"]),
        "timestep": x.timestep(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _latte(config: Config, x: Latent) -> dict[str, Any]:
    p = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.t, x.h * p, x.w * p),
        "timestep": x.timestep(),
        "encoder_hidden_states": x.floats(120, config["caption_channels"]),
    }


FAMILIES: dict[str, Family] = {
    "FluxTransformer2DModel": Family(_flux),
    "SD3Transformer2DModel": Family(_sd3),
    "QwenImageTransformer2DModel": Family(_qwen),
    "HunyuanVideoTransformer3DModel": Family(_hunyuan, frames=4, video=True),
    "WanTransformer3DModel": Family(_wan, frames=4, video=True),
    "CogVideoXTransformer3DModel": Family(_cogvideox, frames=4, video=True),
    "LTXVideoTransformer3DModel": Family(_ltx, pixels=32, frames=8, video=True),
    "MochiTransformer3DModel": Family(_mochi, frames=6, video=True),
    "PixArtTransformer2DModel": Family(_pixart),
    "LatteTransformer3DModel": Family(_latte, frames=1, video=True),
}
