"""Transformers of diffusers' that make sound, music, embeddings and molecules."""

from __future__ import annotations

import diffusers
import torch

from zoo.registry import Case, member, text, text_mask

LENGTHS = ((48,), (37,))
STEPS = torch.tensor([3, 3])
NOISE = torch.tensor([0.3, 0.3])


@member("AceStepTransformer1DModel", *LENGTHS)
def ace_step(n: int) -> Case:
    model = diffusers.AceStepTransformer1DModel(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=4,
        encoder_hidden_size=16,
    )
    return model, {
        "hidden_states": torch.randn(2, 2 * n, 4),
        "timestep": NOISE,
        "timestep_r": NOISE - 0.1,
        "encoder_hidden_states": text(),
        "context_latents": torch.randn(2, 2 * n, 8),
    }


@member("LongCatAudioDiTTransformer", *LENGTHS)
def longcat_audio(n: int) -> Case:
    model = diffusers.LongCatAudioDiTTransformer(dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=16, latent_dim=4)
    return model, {
        "hidden_states": torch.randn(2, n, 4),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": text_mask().bool(),
        "timestep": NOISE,
        "attention_mask": torch.ones(2, n, dtype=torch.bool),
        "latent_cond": torch.randn(2, n, 4),
    }


@member("MiniMaxMusic3RVQDepthDecoder", (12,), (7,))
def minimax_depth(n: int) -> Case:
    model = diffusers.MiniMaxMusic3RVQDepthDecoder(
        hidden_size=32, num_layers=2, num_attention_heads=2, intermediate_size=64, audio_vocab_size=16
    )
    return model, {"inputs_embeds": torch.randn(2, n, 32)}


@member("MiniMaxMusic3Transformer1DModel", *LENGTHS)
def minimax_music(n: int) -> Case:
    model = diffusers.MiniMaxMusic3Transformer1DModel(
        in_channels=4,
        condition_dim=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        ff_inner_dim=64,
        rotary_dim=8,
        fourier_embedding_dim=16,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, n),
        "timestep": NOISE,
        "encoder_hidden_states": torch.randn(2, n, 8),
    }


@member("PriorTransformer", (5,), (9,))
def prior(n: int) -> Case:
    model = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=32, num_embeddings=n
    )
    return model, {
        "hidden_states": torch.randn(2, 32),
        "timestep": STEPS,
        "proj_embedding": torch.randn(2, 32),
        "encoder_hidden_states": torch.randn(2, n, 32),
        "attention_mask": torch.ones(2, n, dtype=torch.bool),
    }


@member("RFD4ProteinaTransformer", (24,), (17,))
def rfd4(n: int) -> Case:
    model = diffusers.RFD4ProteinaTransformer(
        nlayers=2,
        token_dim=32,
        nheads=2,
        dim_cond=16,
        pair_repr_dim=16,
        latent_dim=4,
        t_emb_dim=16,
        tri_mult_c=8,
        feats_seq=("xt_bb_ca", "xt_local_latents", "token_type"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
        feats_pair_repr=("xt_bb_ca_pair_dists",),
    )
    return model, {
        "bb_ca": torch.randn(2, n, 3),
        "local_latents": torch.randn(2, n, 4),
        "bb_ca_time": NOISE,
        "local_latents_time": NOISE,
        "padding_mask": torch.arange(n).expand(2, -1) < torch.tensor([[n], [n - 3]]),
        "token_type": torch.zeros(2, n, dtype=torch.int64),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(2, n, dtype=torch.bool),
            "supports_local_latent": torch.ones(2, n, dtype=torch.bool),
        },
    }


@member("StableAudioDiTModel", *LENGTHS)
def stable_audio(n: int) -> Case:
    model = diffusers.StableAudioDiTModel(
        sample_size=n,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=16,
    )
    angles = torch.rand(n + 1, 4)
    return model, {
        "hidden_states": torch.randn(2, 4, n),
        "timestep": NOISE,
        "encoder_hidden_states": text(),
        "global_hidden_states": torch.randn(2, 1, 8),
        "rotary_embedding": (angles.cos(), angles.sin()),
    }


@member("StableAudio3DiTModel", *LENGTHS)
def stable_audio3(n: int) -> Case:
    model = diffusers.StableAudio3DiTModel(
        io_channels=4,
        embed_dim=64,
        depth=2,
        num_heads=2,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=5,
        timestep_features_dim=16,
        num_memory_tokens=4,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, n),
        "timestep": NOISE,
        "encoder_hidden_states": text(),
        "global_hidden_states": torch.randn(2, 16),
        "encoder_attention_mask": text_mask(),
        "local_add_cond": torch.randn(2, 5, n),
    }


@member("T5FilmDecoder", *LENGTHS)
def t5_film(n: int) -> Case:
    model = diffusers.T5FilmDecoder(
        input_dims=8, targets_length=n, d_model=32, num_layers=2, num_heads=2, d_kv=16, d_ff=64
    )
    return model, {
        "encodings_and_masks": [(text(10, 32), text_mask())],
        "decoder_input_tokens": torch.randn(2, n, 8),
        "decoder_noise_time": NOISE,
    }
