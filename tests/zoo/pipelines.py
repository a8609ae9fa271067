"""Pipelines of diffusers, every part of them small and random, from a prompt to pictures or frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from zoo import FAMILIES

Made = tuple[Any, dict[str, Any]]

PROMPT = "a cat paints a dog that paints a cat"
WORDS = 64


def tokenizer(length: int = 16) -> transformers.PreTrainedTokenizerFast:
    """Tells words apart, as far as it knows them."""
    vocabulary = {word: n for n, word in enumerate(["<pad>", "<unk>", *sorted(set(PROMPT.split())), "<eos>"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **special)


def clip(kind: Any = transformers.CLIPTextModel, width: int = 32, projection: int = 32) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=WORDS,
        projection_dim=projection,
        max_position_embeddings=77,
        eos_token_id=8,
    )
    return kind(config).eval()


def t5(kind: Any = transformers.T5EncoderModel, config: Any = transformers.T5Config, width: int = 32) -> Any:
    return kind(config(d_model=width, d_ff=32, d_kv=8, num_heads=2, num_layers=1, vocab_size=WORDS)).eval()


def vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
        shift_factor=0.0,
    ).eval()


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def flux(kind: Any = diffusers.FluxPipeline, **more: Any) -> Made:
    pipe = kind(
        scheduler=flow(),
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=FAMILIES["flux"]()[0],
        **more,
    )
    return pipe, {"prompt": PROMPT, "height": 48, "width": 64, "max_sequence_length": 16}


def sd3() -> Made:
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=FAMILIES["sd3"]()[0],
        scheduler=flow(),
        vae=vae(),
        text_encoder=clip(transformers.CLIPTextModelWithProjection, 16),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection, 16),
        text_encoder_3=t5(),
        **dict.fromkeys(["tokenizer", "tokenizer_2", "tokenizer_3"], tokenizer()),
    )
    return pipe, {"prompt": PROMPT, "height": 48, "width": 64, "max_sequence_length": 16}


def qwen() -> Made:
    words = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **words,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer(1024),
        transformer=FAMILIES["qwen"]()[0],
    )
    return pipe, {"prompt": PROMPT, "height": 48, "width": 64, "true_cfg_scale": 1.0, "max_sequence_length": 16}


def hunyuanvideo() -> Made:
    llama = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=4, vocab_size=WORDS
    )
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel(llama).eval(),
        tokenizer=tokenizer(512),
        transformer=FAMILIES["hunyuanvideo"]()[0],
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip(width=8),
        tokenizer_2=tokenizer(77),
    )
    return pipe, {"prompt": PROMPT, "height": 96, "width": 128, "num_frames": 9, "max_sequence_length": 16}


def wan() -> Made:
    pipe = diffusers.WanPipeline(
        tokenizer=tokenizer(512),
        text_encoder=t5(transformers.UMT5EncoderModel, transformers.UMT5Config, 16),
        vae=diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=FAMILIES["wan"]()[0],
    )
    return pipe, {"prompt": PROMPT, "height": 96, "width": 128, "num_frames": 9, "max_sequence_length": 16}


def cogvideox() -> Made:
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(width=8),
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ).eval(),
        transformer=FAMILIES["cogvideox"]()[0],
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )
    return pipe, {"prompt": PROMPT, "height": 96, "width": 128, "num_frames": 9, "max_sequence_length": 8}


def ltx() -> Made:
    pipe = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
            patch_size_t=1,
        ).eval(),
        text_encoder=t5(width=16),
        tokenizer=tokenizer(),
        transformer=FAMILIES["ltx"]()[0],
    )
    return pipe, {"prompt": PROMPT, "height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}


PIPELINES: dict[str, Callable[[], Made]] = {
    "flux": flux,
    "sd3": sd3,
    "qwen": qwen,
    "hunyuanvideo": hunyuanvideo,
    "wan": wan,
    "cogvideox": cogvideox,
    "ltx": ltx,
}
