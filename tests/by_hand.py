"""A model whose circuit is known, because its weights were set by hand: an induction head, and nothing else.

Tokens are one-hot. Head 1 of layer 0 looks at the token before and notes it; head 2 of layer 1 looks for a token that noted
the present one, and says it. All else is zero.

    width    0..10 the token | 11..21 the token before | 22..32 what is said next | 35 a one
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

#: Tokens; the first is what texts begin with.
TOKENS = 11
HEAD, HEADS, KV_HEADS = 32, 4, 2
PREVIOUS, INDUCTION = (0, 1), (1, 2)
_HALF = HEAD // 2


@torch.no_grad()
def induction_model(sureness: float = 0.6) -> PreTrainedModel:
    """The model, in float64.

    Args:
        sureness: what the head's logits are multiplied with: the larger, the likelier the token that is copied.
    """
    width = 3 * TOKENS + 3  # a multiple of the heads; the last of them is the one
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=5,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        max_position_embeddings=64,
        rope_theta=1e6,
        tie_word_embeddings=False,
        bos_token_id=0,
        rms_norm_eps=1e-12,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).double().eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "norm" in name else 0.0)
    one = torch.eye(TOKENS, dtype=torch.float64)
    model.model.embed_tokens.weight[:, :TOKENS] = one
    model.model.embed_tokens.weight[:, -1] = 1
    layer, head = PREVIOUS
    attention = model.model.layers[layer].self_attn
    # Query and key are the same for all tokens; RoPE makes them fit best at a distance of one: the query is turned back by it.
    for pair in range(2):
        angle = float(model.model.rotary_emb.inv_freq[pair])
        attention.k_proj.weight[pair, -1] = 12
        attention.q_proj.weight[head * HEAD + pair, -1] = 12 * math.cos(angle)
        attention.q_proj.weight[head * HEAD + _HALF + pair, -1] = -12 * math.sin(angle)
    attention.v_proj.weight[:TOKENS, :TOKENS] = one
    attention.o_proj.weight[TOKENS : 2 * TOKENS, head * HEAD : head * HEAD + TOKENS] = one
    layer, head = INDUCTION
    attention, group = model.model.layers[layer].self_attn, HEADS // KV_HEADS
    # One-hot vectors lie where RoPE hardly turns.
    slow = torch.tensor([*range(8, 14), *range(_HALF + 8, _HALF + 13)])
    attention.q_proj.weight[head * HEAD + slow, :TOKENS] = 8 * one
    attention.k_proj.weight[head // group * HEAD + slow, TOKENS : 2 * TOKENS] = 8 * one
    attention.v_proj.weight[head // group * HEAD : head // group * HEAD + TOKENS, :TOKENS] = one
    attention.o_proj.weight[2 * TOKENS : 3 * TOKENS, head * HEAD : head * HEAD + TOKENS] = one
    model.lm_head.weight[:, 2 * TOKENS : 3 * TOKENS] = sureness * 3 * one
    return model
