"""Transformers of diffusers' that make videos, some of them with sound."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.transformers import (
    transformer_anyflow_far,
    transformer_sana_wm_refiner,
    transformer_wan_animate_2,
)

from zoo.registry import Case, member, text, text_mask

VIDEOS = ((3, 6, 8), (2, 5, 7))
STEPS = torch.tensor([3, 3])
NOISE = torch.tensor([0.3, 0.3])


@member("AllegroTransformer3DModel", *VIDEOS)
def allegro(t: int, h: int, w: int) -> Case:
    model = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=16,
        sample_height=12,
        sample_frames=4,
        caption_channels=16,
    )
    places = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).T
    rotations = tuple((angles.cos(), angles.sin()) for angles in torch.rand(3, 8, 4))
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "encoder_hidden_states": text()[:, None],
        "timestep": STEPS,
        "encoder_attention_mask": text_mask(),
        "image_rotary_emb": (rotations, tuple(places[:, None])),
    }


def _wan(**options: Any) -> dict[str, Any]:
    return {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
        **options,
    }


def _wan_inputs(t: int, h: int, w: int, channels: int = 4) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(2, channels, t, 2 * h, 2 * w),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
    }


@member("AnyFlowTransformer3DModel", *VIDEOS)
def anyflow(t: int, h: int, w: int) -> Case:
    model = diffusers.AnyFlowTransformer3DModel(**_wan())
    video = torch.randn(2, t, 4, 2 * h, 2 * w)
    steps = torch.full((2, t), 0.3)
    return model, {
        "hidden_states": video,
        "timestep": steps,
        "r_timestep": steps - 0.1,
        "encoder_hidden_states": text(),
    }


@member("AnyFlowFARTransformer3DModel", (4, 4, 6), (4, 6, 4))
def anyflow_far(t: int, h: int, w: int) -> Case:
    model = transformer_anyflow_far.AnyFlowFARTransformer3DModel(
        **_wan(attention_head_dim=16), full_chunk_limit=2, chunk_partition=(1, 1, 2)
    )
    steps = torch.full((2, t), 0.3)
    return model, {
        "hidden_states": torch.randn(2, t, 4, 2 * h, 2 * w),
        "timestep": steps,
        "r_timestep": steps - 0.1,
        "encoder_hidden_states": text(),
        "chunk_partition": [1, 1, 2],
        "attention_mask": model.build_attention_mask(chunk_partition=[1, 1, 2], height=2 * h, width=2 * w),
    }


@member("ChronoEditTransformer3DModel", *VIDEOS)
def chronoedit(t: int, h: int, w: int) -> Case:
    model = diffusers.ChronoEditTransformer3DModel(**_wan(rope_temporal_skip_len=8))
    return model, _wan_inputs(t, h, w)


@member("SkyReelsV2Transformer3DModel", *VIDEOS)
def skyreels(t: int, h: int, w: int) -> Case:
    model = diffusers.SkyReelsV2Transformer3DModel(**_wan())
    return model, _wan_inputs(t, h, w)


@member("WanAnimateTransformer3DModel", *VIDEOS)
def wan_animate(t: int, h: int, w: int) -> Case:
    model = diffusers.WanAnimateTransformer3DModel(
        **_wan(in_channels=12),
        latent_channels=4,
        image_dim=16,
        added_kv_proj_dim=24,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return model, {
        **_wan_inputs(t, h, w, 12),
        "encoder_hidden_states": text(512),
        "encoder_hidden_states_image": text(4, 16),
        "pose_hidden_states": torch.randn(2, 4, t - 1, 2 * h, 2 * w),
        "face_pixel_values": torch.randn(2, 3, 4 * (t - 1), 16, 16),
    }


@member("WanVACETransformer3DModel", *VIDEOS)
def wan_vace(t: int, h: int, w: int) -> Case:
    model = diffusers.WanVACETransformer3DModel(**_wan(), vace_layers=[0], vace_in_channels=6)
    return model, {**_wan_inputs(t, h, w), "control_hidden_states": torch.randn(2, 6, t, 2 * h, 2 * w)}


@member("ConsisIDTransformer3DModel", *VIDEOS)
def consisid(t: int, h: int, w: int) -> Case:
    model = diffusers.ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=16,
        num_layers=2,
        sample_width=2 * w,
        sample_height=2 * h,
        sample_frames=4 * t - 3,
        max_text_seq_length=10,
        use_rotary_positional_embeddings=True,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=16,
        cross_attn_num_heads=2,
        LFE_id_dim=16,
        LFE_vit_dim=16,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=2,
        LFE_output_dim=32,
        LFE_ff_mult=2,
        LFE_num_scale=5,
    )
    angles = torch.rand(t * h * w, 24)
    return model, {
        "hidden_states": torch.randn(2, t, 4, 2 * h, 2 * w),
        "encoder_hidden_states": text(),
        "timestep": STEPS,
        "image_rotary_emb": (angles.cos(), angles.sin()),
        "id_cond": torch.randn(2, 16),
        "id_vit_hidden": [text(3, 16) for _ in range(5)],
    }


@member("CosmosTransformer3DModel", *VIDEOS)
def cosmos(t: int, h: int, w: int) -> Case:
    model = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        concat_padding_mask=False,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": torch.tensor([0.3, 0.3]),
        "encoder_hidden_states": text(),
        "attention_mask": text_mask().bool(),
        "fps": 24,
    }


@member("Cosmos3OmniTransformer", *VIDEOS)
def cosmos3(t: int, h: int, w: int) -> Case:
    model = diffusers.Cosmos3OmniTransformer(
        dtype="float32",
        head_dim=16,
        hidden_size=32,
        intermediate_size=64,
        latent_channel=4,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=1,
        patch_latent_dim=16,
        rope_scaling={"mrope_section": [4, 2, 2]},
        vocab_size=64,
    )
    words, tokens = 10, t * h * w
    places = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).T + words
    return model, {
        "input_ids": torch.arange(words),
        "text_indexes": torch.arange(words),
        "position_ids": torch.cat([torch.arange(words).expand(3, -1), places], 1),
        "und_len": words,
        "sequence_length": words + tokens,
        "vision_tokens": [torch.randn(1, 4, t, 2 * h, 2 * w)],
        "vision_token_shapes": [(t, h, w)],
        "vision_sequence_indexes": torch.arange(words, words + tokens),
        "vision_mse_loss_indexes": torch.arange(words, words + tokens),
        "vision_timesteps": torch.full((tokens,), 300.0),
        "vision_noisy_frame_indexes": [torch.arange(t)],
    }


@member("EasyAnimateTransformer3DModel", *VIDEOS)
def easyanimate(t: int, h: int, w: int) -> Case:
    model = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=16,
        sample_height=12,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=16,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
    }


@member("HeliosTransformer3DModel", *VIDEOS)
def helios(t: int, h: int, w: int) -> Case:
    model = diffusers.HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_dim=(4, 4, 4),
    )
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
        "indices_hidden_states": torch.arange(7, 7 + t).expand(2, -1),
        "indices_latents_history_short": torch.arange(6, 7).expand(2, -1),
        "indices_latents_history_mid": torch.arange(4, 6).expand(2, -1),
        "indices_latents_history_long": torch.arange(4).expand(2, -1),
        "latents_history_short": torch.randn(2, 4, 1, 2 * h, 2 * w),
        "latents_history_mid": torch.randn(2, 4, 2, 2 * h, 2 * w),
        "latents_history_long": torch.randn(2, 4, 4, 2 * h, 2 * w),
    }


@member("HunyuanVideo15Transformer3DModel", *VIDEOS)
def hunyuanvideo15(t: int, h: int, w: int) -> Case:
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=12,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    return model, {
        "hidden_states": torch.randn(2, 4, t, h, w),
        "timestep": STEPS.float(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": text_mask(),
        "encoder_hidden_states_2": text(6, 12),
        "encoder_attention_mask_2": text_mask(6),
        "image_embeds": torch.randn(2, 4, 8),
    }


@member("HunyuanVideoFramepackTransformer3DModel", *VIDEOS)
def framepack(t: int, h: int, w: int) -> Case:
    model = diffusers.HunyuanVideoFramepackTransformer3DModel(
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
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
        "encoder_attention_mask": text_mask(),
        "pooled_projections": torch.randn(2, 8),
        "image_embeds": torch.randn(2, 3, 16),
        "indices_latents": torch.arange(t),
        "guidance": torch.tensor([6.0, 6.0]),
        "latents_clean": torch.randn(2, 4, 2, 2 * h, 2 * w),
        "indices_latents_clean": torch.arange(2),
        "latents_history_2x": torch.randn(2, 4, 2, 2 * h, 2 * w),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": torch.randn(2, 4, 4, 2 * h, 2 * w),
        "indices_latents_history_4x": torch.arange(4),
    }


@member("JoyImageEditTransformer3DModel", *VIDEOS)
def joyimage(t: int, h: int, w: int) -> Case:
    model = diffusers.JoyImageEditTransformer3DModel(
        in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=16, num_layers=2, rope_dim_list=[4, 6, 6]
    )
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
    }


@member("JoyImageEditPlusTransformer3DModel", *VIDEOS)
def joyimage_plus(t: int, h: int, w: int) -> Case:
    model = diffusers.JoyImageEditPlusTransformer3DModel(
        in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=16, num_layers=2, rope_dim_list=[4, 6, 6]
    )
    return model, {
        "hidden_states": torch.randn(2, t * h * w, 4, 1, 2, 2),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
        "encoder_hidden_states_mask": text_mask().float(),
        "shape_list": [[(t, h, w)]] * 2,
    }


@member("Kandinsky5Transformer3DModel", (3, 8, 16), (2, 8, 8))
def kandinsky5(t: int, h: int, w: int) -> Case:
    model = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    return model, {
        "hidden_states": torch.randn(1, t, 2 * h, 2 * w, 4),
        "encoder_hidden_states": text()[:1],
        "timestep": NOISE[:1],
        "pooled_projections": torch.randn(1, 8),
        "visual_rope_pos": (torch.arange(t), torch.arange(h), torch.arange(w)),
        "text_rope_pos": torch.arange(10),
    }


@member("Kandinsky6Transformer3DModel", *VIDEOS)
def kandinsky6(t: int, h: int, w: int) -> Case:
    model = diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        visual_cond=False,
        in_audio_dim=6,
        out_audio_dim=6,
    )
    return model, {
        "hidden_states": torch.randn(2, t, 2 * h, 2 * w, 4),
        "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(2, 8),
        "timestep": NOISE,
        "audio_hidden_states": torch.randn(2, 9, 6),
        "encoder_attention_mask": text_mask().bool(),
    }


@member("Kandinsky6SRTransformer3DModel", (2, 8, 16), (1, 16, 8))
def kandinsky6_sr(t: int, h: int, w: int) -> Case:
    model = diffusers.Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    return model, {"hidden_states": torch.randn(1, t, h, w, 9), "timestep": NOISE[:1]}


@member("LTX2VideoTransformer3DModel", *VIDEOS)
def ltx2(t: int, h: int, w: int) -> Case:
    model = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
        rope_double_precision=False,
    )
    return model, {
        "hidden_states": torch.randn(2, t * h * w, 4),
        "audio_hidden_states": torch.randn(2, 9, 4),
        "encoder_hidden_states": text(),
        "audio_encoder_hidden_states": text(),
        "timestep": torch.rand(2),
        "encoder_attention_mask": text_mask(),
        "audio_encoder_attention_mask": text_mask(),
        "num_frames": t,
        "height": h,
        "width": w,
        "audio_num_frames": 9,
    }


@member("MiniMaxH3Transformer3DModel", *VIDEOS)
def minimax_h3(t: int, h: int, w: int) -> Case:
    model = diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=64,
        in_channels=4,
        audio_in_channels=4,
        text_dim=16,
        freq_dim=16,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    words, sounds, tokens = 10, 6, t * h * w
    total = words + tokens + sounds
    places = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)) + words
    return model, {
        "hidden_states": torch.randn(2, tokens, 16),
        "audio_hidden_states": torch.randn(2, sounds, 4),
        "encoder_hidden_states": text(words),
        "timestep": torch.tensor([300.0]),
        "timestep_indices": torch.zeros(total, dtype=torch.int64),
        "token_tags": torch.tensor([0] * words + [1] * tokens + [2] * sounds),
        "position_ids": torch.cat(
            [torch.arange(words)[:, None].expand(-1, 3), places, torch.arange(sounds)[:, None].expand(-1, 3)]
        ),
        "text_indices": torch.arange(words),
        "video_indices": torch.arange(words, words + tokens),
        "audio_indices": torch.arange(words + tokens, total),
    }


@member("MochiTransformer3DModel", *VIDEOS)
def mochi(t: int = 2, h: int = 6, w: int = 8) -> Case:
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
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "encoder_hidden_states": text(16),
        "timestep": STEPS,
        "encoder_attention_mask": text_mask(16).bool(),
    }


@member("MotifVideoTransformer3DModel", *VIDEOS)
def motif(t: int, h: int, w: int) -> Case:
    model = diffusers.MotifVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_decoder_layers=1,
        text_embed_dim=16,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
        "encoder_attention_mask": text_mask(),
        "image_embeds": torch.randn(2, 3, 8),
    }


@member("SanaVideoTransformer3DModel", *VIDEOS)
def sana_video(t: int, h: int, w: int) -> Case:
    model = diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        rope_max_seq_len=32,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "encoder_hidden_states": text(),
        "timestep": STEPS,
        "encoder_attention_mask": text_mask(),
    }


@member("SanaWMTransformer3DModel", *VIDEOS)
def sana_wm(t: int, h: int, w: int) -> Case:
    model = diffusers.SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_channels=6,
        chunk_plucker_post_attn_blocks=2,
        caption_channels=16,
    )
    camera = torch.eye(4).flatten().expand(2, t, 16)
    lens = torch.tensor([1.0, 1.0, 0.5, 0.5]).expand(2, t, 4)
    return model, {
        "hidden_states": torch.randn(2, 4, t, h, w),
        "timestep": torch.full((2, 1, t), 300),
        "encoder_hidden_states": text()[:, None],
        "mask": text_mask()[:, None, None],
        "camera_conditions": torch.cat([camera, lens], 2),
        "chunk_plucker": torch.randn(2, 6, t, h, w),
    }


@member("SanaWMLTX2RefinerTransformer3DModel", *VIDEOS)
def sana_wm_refiner(t: int, h: int, w: int) -> Case:
    model = transformer_sana_wm_refiner.SanaWMLTX2RefinerTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
    )
    angles = torch.rand(2, t * h * w, 32)
    return model, {
        "hidden_states": torch.randn(2, t * h * w, 4),
        "encoder_hidden_states": text(),
        "timestep": torch.rand(2),
        "video_rotary_emb": (angles.cos(), angles.sin()),
        "encoder_attention_mask": text_mask(),
    }


@member("TransformerTemporalModel", *VIDEOS)
def temporal(t: int, h: int, w: int) -> Case:
    model = diffusers.TransformerTemporalModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=32, norm_num_groups=8
    )
    return model, {"hidden_states": torch.randn(2 * t, 32, h, w), "num_frames": t}


@member("WanAnimate2Transformer3DModel", *VIDEOS)
def wan_animate2(t: int, h: int, w: int) -> Case:
    model = transformer_wan_animate_2.WanAnimate2Transformer3DModel(
        text_len=12,
        in_dim=6,
        dim=32,
        ffn_dim=64,
        freq_dim=16,
        text_dim=16,
        out_dim=4,
        num_heads=2,
        num_layers=2,
    )
    return model, {
        "hidden_states": [torch.randn(4, t, 2 * h, 2 * w) for _ in range(2)],
        "timestep": STEPS,
        "encoder_hidden_states": [torch.randn(10, 16), torch.randn(6, 16)],
        "condition_latents": [torch.randn(2, t, 2 * h, 2 * w) for _ in range(2)],
        "kv_cache": transformer_wan_animate_2.WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": t * h * w,
        "encoder_hidden_states_image": text(4, 1280),
        "offset_grid_sizes": torch.tensor([[t, h, w]] * 2),
    }


@member("HunyuanVideoTransformer3DModel", *VIDEOS)
def hunyuanvideo(t: int = 5, h: int = 6, w: int = 8) -> Case:
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
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 10, 16),
        "encoder_attention_mask": torch.tensor([[1] * 10, [1] * 6 + [0] * 4]),
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.tensor([6.0, 6.0]),
    }


@member("WanTransformer3DModel", *VIDEOS)
def wan(t: int = 3, h: int = 6, w: int = 8) -> Case:
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
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 10, 16),
    }


@member("CogVideoXTransformer3DModel", *VIDEOS)
def cogvideox(t: int = 3, h: int = 6, w: int = 8) -> Case:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=1,
        sample_width=2 * w,
        sample_height=2 * h,
        sample_frames=4 * t - 3,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=True,
    )
    angles = torch.rand(t * h * w, 16)
    return model.eval(), {
        "hidden_states": torch.randn(2, t, 4, 2 * h, 2 * w),
        "encoder_hidden_states": torch.randn(2, 8, 8),
        "timestep": torch.tensor([3, 3]),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


@member("LTXVideoTransformer3DModel", *VIDEOS)
def ltx(t: int = 2, h: int = 6, w: int = 8) -> Case:
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
        "hidden_states": torch.randn(2, t * h * w, 8),
        "encoder_hidden_states": torch.randn(2, 10, 16),
        "timestep": torch.rand(2),
        "encoder_attention_mask": torch.ones(2, 10),
        "num_frames": t,
        "height": h,
        "width": w,
    }


@member("LatteTransformer3DModel", (3, 4, 4), (2, 5, 5))
def latte(t: int = 3, h: int = 4, w: int = 4) -> Case:
    model = diffusers.LatteTransformer3DModel(
        sample_size=2 * h,
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
        video_length=t,
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 4, t, 2 * h, 2 * w),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 8, 32),
    }
