"""Transformers of diffusers' that make pictures."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.transformers import transformer_ideogram4

from planner.models.families.flux import flux_ids
from zoo.registry import Case, member, packed, text, text_mask

PICTURES = ((12, 16), (10, 14))
STEPS = torch.tensor([3, 3])
NOISE = torch.tensor([0.3, 0.3])


@member("AuraFlowTransformer2DModel", *PICTURES)
def auraflow(h: int, w: int) -> Case:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=32,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "encoder_hidden_states": text(),
        "timestep": NOISE,
    }


@member("BriaTransformer2DModel", *PICTURES)
def bria(h: int, w: int) -> Case:
    model = diffusers.BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 6, 6],
    )
    return model, {**packed(16, h, w), "encoder_hidden_states": text(), "timestep": STEPS}


@member("BriaFiboTransformer2DModel", *PICTURES)
def bria_fibo(h: int, w: int) -> Case:
    model = diffusers.BriaFiboTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=8,
    )
    return model, {
        **packed(16, h, w),
        "encoder_hidden_states": text(),
        "text_encoder_layers": [text(10, 8), text(10, 8)],
        "timestep": STEPS,
    }


@member("BriaFibo2Transformer2DModel", *PICTURES)
def bria_fibo2(h: int, w: int) -> Case:
    model = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=16,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=(4, 6, 6),
        axes_lens=(64, 64, 64),
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "timestep": NOISE,
        "encoder_hidden_states": torch.randn(2, 2, 10, 16),
    }


@member("ChromaTransformer2DModel", *PICTURES)
def chroma(h: int, w: int) -> Case:
    model = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    mask = torch.cat([text_mask(), torch.ones(2, h * w, dtype=torch.int64)], 1)
    return model, {
        **packed(16, h, w),
        "encoder_hidden_states": text(),
        "timestep": NOISE,
        "attention_mask": mask.bool(),
    }


@member("CogView3PlusTransformer2DModel", *PICTURES)
def cogview3(h: int, w: int) -> Case:
    model = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=32,
        sample_size=32,
    )
    return model, _cogview_inputs(h, w)


@member("CogView4Transformer2DModel", *PICTURES)
def cogview4(h: int, w: int) -> Case:
    model = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(64, 64),
    )
    return model, _cogview_inputs(h, w)


def _cogview_inputs(h: int, w: int) -> dict[str, torch.Tensor]:
    size = torch.tensor([[32.0, 32.0]] * 2)
    return {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "encoder_hidden_states": text(),
        "timestep": STEPS,
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(2, 2),
    }


@member("DiTTransformer2DModel", (12, 12), (10, 10))
def dit(h: int, w: int) -> Case:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "timestep": STEPS,
        "class_labels": torch.tensor([1, 2]),
    }


@member("DreamLiteTransformer2DModel", *PICTURES)
def dreamlite(h: int, w: int) -> Case:
    model = diffusers.DreamLiteTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=32,
        cross_attention_dim=16,
        qk_norm="rms_norm",
        use_linear_projection=True,
    )
    return model, {
        "hidden_states": torch.randn(2, 32, h, w),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": text_mask(),
    }


@member("ErnieImageTransformer2DModel", *PICTURES)
def ernie(h: int, w: int) -> Case:
    model = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=8,
        out_channels=8,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    return model, {
        "hidden_states": torch.randn(2, 8, h, w),
        "timestep": STEPS,
        "text_bth": text(),
        "text_lens": torch.tensor([10, 6]),
    }


@member("Flux2Transformer2DModel", *PICTURES)
def flux2(h: int, w: int) -> Case:
    model = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    ids, txt = _four(h, w)
    return model, {
        "hidden_states": torch.randn(2, h * w, 16),
        "encoder_hidden_states": text(),
        "timestep": NOISE,
        "guidance": torch.ones(2),
        "img_ids": ids,
        "txt_ids": txt,
    }


@member("Flux3Transformer2DModel", *PICTURES)
def flux3(h: int, w: int) -> Case:
    model = diffusers.Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    ids, txt = _four(h, w)
    return model, {
        "hidden_states": torch.randn(2, h * w, 16),
        "encoder_hidden_states": text(),
        "timestep": NOISE,
        "img_ids": ids,
        "txt_ids": txt,
    }


def _four(h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of four axes: image, height, width, text."""
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(h), torch.arange(w), torch.arange(1))
    return ids, torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(10))


@member("GlmImageTransformer2DModel", *PICTURES)
def glm(h: int, w: int) -> Case:
    model = diffusers.GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=32,
    )
    size = torch.tensor([[32.0, 32.0]] * 2)
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "encoder_hidden_states": text(),
        "prior_token_id": torch.arange(2 * h * w).view(2, h * w) % 32,
        "prior_token_drop": torch.zeros(2, h * w, dtype=torch.bool),
        "timestep": STEPS,
        "target_size": size,
        "crop_coords": torch.zeros(2, 2),
    }


@member("HiDreamImageTransformer2DModel", *PICTURES)
def hidream(h: int, w: int) -> Case:
    model = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[16, 12],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "encoder_hidden_states_t5": text(8, 16),
        "encoder_hidden_states_llama3": torch.randn(2, 2, 8, 12),
        "pooled_embeds": torch.randn(2, 16),
        "timesteps": STEPS,
    }


@member("HunyuanDiT2DModel", *PICTURES)
def hunyuandit(h: int, w: int) -> Case:
    model = diffusers.HunyuanDiT2DModel(
        sample_size=16,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=4,
        hidden_size=24,
        activation_fn="gelu-approximate",
        text_len=6,
        text_len_t5=4,
    )
    angles = torch.rand(h * w, 8)
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "timestep": torch.tensor([3.0, 3.0]),
        "encoder_hidden_states": text(6),
        "text_embedding_mask": text_mask(6),
        "encoder_hidden_states_t5": text(4),
        "text_embedding_mask_t5": torch.ones(2, 4, dtype=torch.int64),
        "image_meta_size": torch.tensor([[32.0] * 6] * 2),
        "style": torch.tensor([0, 0]),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


@member("HunyuanImageTransformer2DModel", *PICTURES)
def hunyuanimage(h: int, w: int) -> Case:
    model = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=12,
        rope_axes_dim=(8, 8),
    )
    return model, {
        "hidden_states": torch.randn(2, 4, h, w),
        "timestep": STEPS.float(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": text_mask(),
        "encoder_hidden_states_2": text(6, 12),
        "encoder_attention_mask_2": text_mask(6),
    }


@member("Ideogram4Transformer2DModel", *PICTURES)
def ideogram4(h: int, w: int) -> Case:
    model = transformer_ideogram4.Ideogram4Transformer2DModel(
        in_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=16,
        mrope_section=(4, 2, 2),
    )
    tokens = 10 + h * w
    image = torch.cartesian_prod(torch.arange(1), torch.arange(h), torch.arange(w)) + 10
    words = torch.arange(10)[:, None].expand(10, 3)
    indicator = torch.tensor(
        [transformer_ideogram4.LLM_TOKEN_INDICATOR] * 10 + [transformer_ideogram4.OUTPUT_IMAGE_INDICATOR] * (h * w)
    )
    return model, {
        "hidden_states": torch.randn(2, tokens, 8),
        "timestep": NOISE,
        "encoder_hidden_states": text(tokens),
        "position_ids": torch.cat([words, image]).expand(2, -1, -1),
        "segment_ids": torch.zeros(2, tokens, dtype=torch.int64),
        "indicator": indicator.expand(2, -1),
    }


@member("Krea2Transformer2DModel", *PICTURES)
def krea2(h: int, w: int) -> Case:
    model = diffusers.Krea2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return model, {
        "hidden_states": torch.randn(2, h * w, 8),
        "encoder_hidden_states": torch.randn(2, 10, 3, 16),
        "timestep": NOISE,
        "position_ids": torch.cat([torch.zeros(10, 3), flux_ids(h, w)]),
        "encoder_attention_mask": text_mask().bool(),
    }


@member("LongCatImageTransformer2DModel", *PICTURES)
def longcat_image(h: int, w: int) -> Case:
    model = diffusers.LongCatImageTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 6, 6],
    )
    return model, {**packed(16, h, w), "encoder_hidden_states": text(), "timestep": NOISE}


@member("Lumina2Transformer2DModel", *PICTURES)
def lumina2(h: int, w: int) -> Case:
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=16,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "timestep": NOISE,
        "encoder_hidden_states": text(),
        "encoder_attention_mask": torch.ones(2, 10, dtype=torch.int64),
    }


@member("LuminaNextDiT2DModel", *PICTURES)
def lumina_next(h: int, w: int) -> Case:
    model = diffusers.LuminaNextDiT2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        cross_attention_dim=16,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "timestep": NOISE,
        "encoder_hidden_states": text(),
        "encoder_mask": text_mask(),
        "image_rotary_emb": torch.randn(32, 32, 4, dtype=torch.complex64),
        "cross_attention_kwargs": {},
    }


@member("NucleusMoEImageTransformer2DModel", *PICTURES)
def nucleus(h: int, w: int) -> Case:
    model = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        num_experts=4,
        moe_intermediate_dim=16,
        dense_moe_strategy="leave_first_block_dense",
        capacity_factors=[2.0, 2.0],
    )
    for weights in model.parameters():  # those of the experts come without values
        torch.nn.init.normal_(weights, std=0.1)
    return model, {
        "hidden_states": torch.randn(2, h * w, 16),
        "img_shapes": [(1, h, w)] * 2,
        "encoder_hidden_states": text(),
        "encoder_hidden_states_mask": text_mask().bool(),
        "timestep": NOISE,
    }


@member("OmniGenTransformer2DModel", *PICTURES)
def omnigen(h: int, w: int) -> Case:
    model = diffusers.OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=64,
        time_step_dim=4,
        rope_scaling={"long_factor": [1.0, 1.0], "short_factor": [1.0, 1.0]},
        pos_embed_max_size=32,
    )
    tokens = 10 + 1 + h * w
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "timestep": NOISE,
        "input_ids": torch.arange(20).view(2, 10),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(2, tokens, tokens).tril().index_fill(2, torch.arange(11, tokens), 1),
        "position_ids": torch.arange(tokens).expand(2, -1),
    }


@member("OvisImageTransformer2DModel", *PICTURES)
def ovis(h: int, w: int) -> Case:
    model = diffusers.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return model, {**packed(16, h, w), "encoder_hidden_states": text(), "timestep": NOISE}


@member("PRXTransformer2DModel", *PICTURES)
def prx(h: int, w: int) -> Case:
    model = diffusers.PRXTransformer2DModel(
        in_channels=4, context_in_dim=16, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "timestep": NOISE,
        "encoder_hidden_states": text(),
        "attention_mask": text_mask().bool(),
    }


@member("QwenImage21Transformer2DModel", *PICTURES)
def qwen21(h: int, w: int) -> Case:
    model = diffusers.QwenImage21Transformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return model, {
        "hidden_states": torch.randn(2, h * w, 16),
        "encoder_hidden_states": text(),
        "timestep": NOISE[:1],
        "img_shapes": [[(1, h, w)]] * 2,
        "img_mask": torch.tensor([[False] * 10 + [True] * (h * w // 4)] * 2),
    }


@member("SanaTransformer2DModel", *PICTURES)
def sana(h: int, w: int) -> Case:
    model = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, h, w),
        "encoder_hidden_states": text(),
        "timestep": STEPS,
        "encoder_attention_mask": text_mask(),
    }


@member("Transformer2DModel", *PICTURES)
def transformer2d(h: int, w: int) -> Case:
    model = diffusers.Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=32,
        norm_num_groups=8,
        cross_attention_dim=16,
    )
    return model, {"hidden_states": torch.randn(2, 32, h, w), "encoder_hidden_states": text()}


@member("ZImageTransformer2DModel", *PICTURES)
def z_image(h: int, w: int) -> Case:
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 64, 64],
    )
    return model, {
        "x": [torch.randn(4, 1, 2 * h, 2 * w) for _ in range(2)],
        "t": NOISE,
        "cap_feats": [torch.randn(10, 16), torch.randn(10, 16)],
    }


FLUX: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
"""A small FLUX."""


@member("FluxTransformer2DModel", *PICTURES)
def flux(h: int = 12, w: int = 16, text: int = 8, batch: int = 2) -> Case:
    return diffusers.FluxTransformer2DModel(**FLUX).eval(), flux_inputs(h, w, text, batch)


def deep_flux(double: int, single: int) -> torch.nn.Module:
    """Return the same with so many blocks of each kind."""
    return diffusers.FluxTransformer2DModel(**{**FLUX, "num_layers": double, "num_single_layers": single}).eval()


def flux_inputs(h: int = 12, w: int = 16, text: int = 8, batch: int = 2) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, h * w, 16),
        "encoder_hidden_states": torch.randn(batch, text, 32),
        "pooled_projections": torch.randn(batch, 32),
        "timestep": torch.rand(batch),
        "img_ids": flux_ids(h, w),
        "txt_ids": torch.zeros(text, 3),
    }


@member("SD3Transformer2DModel", *PICTURES)
def sd3(h: int = 12, w: int = 16) -> Case:
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
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "encoder_hidden_states": torch.randn(2, 10, 32),
        "pooled_projections": torch.randn(2, 64),
        "timestep": torch.tensor([3, 3]),
    }


@member("QwenImageTransformer2DModel", *PICTURES)
def qwen(h: int = 6, w: int = 8) -> Case:
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
        "hidden_states": torch.randn(2, h * w, 16),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "encoder_hidden_states_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        "timestep": torch.rand(2),
        "img_shapes": [[(1, h, w)]] * 2,
    }


@member("PixArtTransformer2DModel", *PICTURES)
def pixart(h: int = 6, w: int = 8) -> Case:
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
        "hidden_states": torch.randn(2, 4, 2 * h, 2 * w),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 8, 32),
        "added_cond_kwargs": {"aspect_ratio": None, "resolution": None},
    }
