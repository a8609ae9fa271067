"""Small configurations of real diffusers transformers, with inputs that the groups used do not divide.

``FAMILIES[name]()`` gives (model, kwargs) with random weights, ``EXPECTED[name]`` the layouts to be found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from models.inputs import flux_ids

Case = tuple[torch.nn.Module, dict[str, Any]]

FORCE: dict[str, Any] = {"target": "cpu", "min_speedup": 0.0}
"""Options of planner.compile: the models here are so small that nothing gains; plan them all the same."""


def flux(h: int = 12, w: int = 16, text: int = 8, batch: int = 2) -> Case:
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(8, 12, 12),
    )
    return model.eval(), flux_inputs(h, w, text, batch)


def flux_inputs(h: int = 12, w: int = 16, text: int = 8, batch: int = 2) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, h * w, 16),
        "encoder_hidden_states": torch.randn(batch, text, 32),
        "pooled_projections": torch.randn(batch, 32),
        "timestep": torch.rand(batch),
        "img_ids": flux_ids(h, w),
        "txt_ids": torch.zeros(text, 3),
    }


def hunyuanvideo() -> Case:
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 4, 5, 12, 16),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 10, 16),
        "encoder_attention_mask": torch.tensor([[1] * 10, [1] * 6 + [0] * 4]),
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.tensor([6.0, 6.0]),
    }


def wan() -> Case:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 4, 3, 12, 16),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 10, 16),
    }


def sd3() -> Case:
    model = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 4, 24, 32),
        "encoder_hidden_states": torch.randn(2, 10, 32),
        "pooled_projections": torch.randn(2, 64),
        "timestep": torch.tensor([3, 3]),
    }


def cogvideox() -> Case:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=1,
        sample_width=16,
        sample_height=12,
        sample_frames=9,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=True,
    )
    angles = torch.rand(3 * 6 * 8, 16)
    return model.eval(), {
        "hidden_states": torch.randn(2, 3, 4, 12, 16),
        "encoder_hidden_states": torch.randn(2, 8, 8),
        "timestep": torch.tensor([3, 3]),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def ltx() -> Case:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=16,
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 2 * 6 * 8, 8),
        "encoder_hidden_states": torch.randn(2, 10, 16),
        "timestep": torch.rand(2),
        "encoder_attention_mask": torch.ones(2, 10),
        "num_frames": 2,
        "height": 6,
        "width": 8,
    }


def qwen() -> Case:
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 6 * 8, 16),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "encoder_hidden_states_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        "timestep": torch.rand(2),
        "img_shapes": [[(1, 6, 8)]] * 2,
    }


def pixart() -> Case:
    model = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        use_additional_conditions=False,
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 4, 12, 16),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 8, 32),
        "added_cond_kwargs": {"aspect_ratio": None, "resolution": None},
    }


def latte() -> Case:
    model = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=3,
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 4, 3, 8, 8),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 8, 32),
    }


def mochi() -> Case:
    model = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 4, 2, 12, 16),
        "encoder_hidden_states": torch.randn(2, 16, 16),
        "timestep": torch.tensor([3, 3]),
        "encoder_attention_mask": torch.ones(2, 16).bool(),
    }


FAMILIES: dict[str, Callable[[], Case]] = {
    "flux": flux,
    "hunyuanvideo": hunyuanvideo,
    "wan": wan,
    "sd3": sd3,
    "cogvideox": cogvideox,
    "ltx": ltx,
    "qwen": qwen,
    "pixart": pixart,
    "latte": latte,
}
"""The families that must be captured whole, planned and run."""

CROSS = "cross-attention"
EXPECTED: dict[str, dict[str, str]] = {
    "flux": {
        "transformer_blocks.0.attn": "encoder_hidden_states:8 | hidden_states[h:12 w:16]",
        "single_transformer_blocks.0.attn": "encoder_hidden_states:8 | hidden_states[h:12 w:16]",
    },
    "hunyuanvideo": {
        "context_embedder.token_refiner.refiner_blocks.0.attn": "no grid",
        "transformer_blocks.0.attn": "hidden_states[t:5 h:6 w:8] | encoder_hidden_states:10",
        "single_transformer_blocks.0.attn": "hidden_states[t:5 h:6 w:8] | encoder_hidden_states:10",
    },
    "wan": {
        "blocks.0.attn1": "hidden_states[t:3 h:6 w:8]",
        "blocks.0.attn2": CROSS,
        "blocks.1.attn1": "hidden_states[t:3 h:6 w:8]",
        "blocks.1.attn2": CROSS,
    },
    "sd3": {
        "transformer_blocks.0.attn": "hidden_states[h:12 w:16] | encoder_hidden_states:10",
        "transformer_blocks.0.attn2": "hidden_states[h:12 w:16]",
        "transformer_blocks.1.attn": "hidden_states[h:12 w:16] | encoder_hidden_states:10",
    },
    "cogvideox": {"transformer_blocks.0.attn1": "encoder_hidden_states:8 | hidden_states[t:3 h:6 w:8]"},
    "ltx": {
        "transformer_blocks.0.attn1": "hidden_states[t:2 h:6 w:8]",
        "transformer_blocks.0.attn2": CROSS,
    },
    "qwen": {
        "transformer_blocks.0.attn": "encoder_hidden_states:7 | hidden_states[h:6 w:8]",
        "transformer_blocks.1.attn": "encoder_hidden_states:7 | hidden_states[h:6 w:8]",
    },
    "pixart": {"transformer_blocks.0.attn1": "hidden_states[h:6 w:8]", "transformer_blocks.0.attn2": CROSS},
    "latte": {
        "transformer_blocks.0.attn1": "hidden_states[h:4 w:4]",
        "transformer_blocks.0.attn2": CROSS,
        "temporal_transformer_blocks.0.attn1": "hidden_states[t:3]",
    },
}
"""Layout of each site, or how its reason for staying dense begins."""

GROUPS = {"latte": "2x3"} | dict.fromkeys(["flux", "sd3", "qwen", "pixart"], "3x5")
"""A group that divides neither axis of the family's grid; 1x3x5 for video."""
