#!/usr/bin/env python3
"""Writes tests/data/golden: small random models of every family, with reference outputs.

Each folder holds one checkpoint exactly as the model hub spells it, and what the published
reference implementation computes from it:

  config.json           the family's own keys
  model.safetensors     hub tensor names; one model is sharded with an index instead
  golden.json           prompts, 64 greedy tokens for each, the margins behind them
  golden.safetensors    logits.<i> F32 [T, V], the logits at every position of prompt i

The reference computes in float32 from the stored (rounded) weights, with eager attention. The
models are random, but not arbitrary: no two dimensions of a model are equal, so that a transpose
shows; every config key in `mistakes` is proved to change the logits, so that a reader that ignores
it fails; and no decision on the way (greedy token, top-k expert) is a near tie, so that another
order of summation cannot flip one.

Families without a class in transformers (skywork_moe, skywork) run on the Mixtral and Llama
classes. skywork_moe differs from Mixtral by one line, see SkyworkGate.

Needs torch 2.6.0 and transformers 4.57.1. The output depends on the seeds alone.
Usage: make_golden.py [--only NAME ...] [--out DIR]
"""

import argparse
import json
import math
import os
import shutil
import zlib
from dataclasses import dataclass, field

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

PROMPT_LENGTHS = (1, 13, 37)
GREEDY_TOKENS = 64
CANDIDATES = 256          # prompts decoded together when searching for one without near ties
ROUNDS = 6                # such batches tried at most
FIRST_PLAIN_TOKEN = 3     # ids below are unk, bos, eos in most families
MIN_LOGIT_MARGIN = 1e-2   # top1 - top2 logit, in units of the logits' std
MIN_ROUTER_MARGIN = 1e-3  # k-th - (k+1)-th router logit, in units of the router logits' std
MIN_DISTINCT = 24         # distinct tokens among the 64
MIN_DISTINCT_TAIL = 8     # distinct tokens among the last 24: not a short loop
FP8_MAX = 448.0           # largest float8_e4m3fn
FP8_BLOCK = 128           # rows and columns that share a scale where blocks have one

# The residual stream has this standard deviation at the embeddings. It is small, as in trained
# models, so that rms_norm_eps is large enough to be seen in the logits.
STREAM_STD = 0.04


@dataclass(frozen=True)
class Model:
    """One golden folder.

    dtype     stored type of the weights: BF16, F16, F32, or FP8 (projections FP8, the rest BF16)
    scaling   of FP8: "tensor", "channel" or "block", what has one scale
    mistakes  config edits, each of which must change the logits (a value of None is JSON null)
    shards    number of safetensors files
    seed      name whose hash seeds the weights; the model's own name when empty
    gain      factors on the initial std of the tensors whose name contains the key
    """

    name: str
    config: dict
    dtype: str = "BF16"
    scaling: str = "tensor"
    mistakes: tuple = ()
    shards: int = 1
    seed: str = ""
    gain: dict = field(default_factory=dict)


# ------------------------------------------------------------------------------------ families


def common(model_type, architecture, **keys):
    """The keys that every family's config.json has."""
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    config.update(keys)
    return config


def skywork_moe(**keys):
    # No top-k key (2 is implied), and num_experts is a list.
    base = {
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rotary_percent": 1.0,
        "moe_expert_interval": 1,
        "moe_use_logits_norm": True,
        "moe_gate_norm_std": 1.0,
        "moe_2layer_gate": False,
        "moe_use_skywork_gating": False,
        "moe_feature_no_mul_topk": True,
    }
    return common("skywork_moe", "SkyworkForCausalLM", **{**base, **keys})


def mixtral(**keys):
    base = {
        "attention_dropout": 0.0,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
    }
    return common("mixtral", "MixtralForCausalLM", **{**base, **keys})


def qwen3_moe(**keys):
    base = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 3,
        "eos_token_id": 5,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "output_router_logits": False,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    return common("qwen3_moe", "Qwen3MoeForCausalLM", **{**base, **keys})


def olmoe(**keys):
    # The released config has neither rms_norm_eps (class default 1e-5) nor bos_token_id.
    base = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "clip_qkv": None,
        "eos_token_id": 7,
        "pad_token_id": 1,
        "norm_topk_prob": False,
        "output_router_logits": False,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.01,
    }
    config = common("olmoe", "OlmoeForCausalLM", **{**base, **keys})
    del config["bos_token_id"]
    return config


def llama(**keys):
    base = {
        "attention_bias": False,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
    }
    return common("llama", "LlamaForCausalLM", **{**base, **keys})


def qwen2(**keys):
    base = {
        "attention_dropout": 0.0,
        "bos_token_id": 4,
        "eos_token_id": 6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
    }
    return common("qwen2", "Qwen2ForCausalLM", **{**base, **keys})


def skywork(**keys):
    # Neither num_key_value_heads (multi-head attention) nor rope_theta (class default 1e4).
    return common("skywork", "SkyworkForCausalLM", pad_token_id=0, rms_norm_eps=1e-6, **keys)


MIXTRAL = mixtral(
    vocab_size=307, hidden_size=52, intermediate_size=46, num_hidden_layers=2,
    num_attention_heads=10, num_key_value_heads=5, head_dim=14, num_local_experts=6,
    max_position_embeddings=400)

LLAMA3_SCALING = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 128, "rope_type": "llama3"}

MODELS = [
    Model(
        "skywork_moe",
        skywork_moe(
            vocab_size=301, hidden_size=54, intermediate_size=38, num_hidden_layers=2,
            num_attention_heads=9, num_key_value_heads=9, num_experts=[7],
            max_position_embeddings=512),
        # 1.08 = sqrt(7/6) is what the biased standard deviation would give.
        mistakes=({"moe_use_logits_norm": False}, {"moe_gate_norm_std": 1.08},
                  {"rope_theta": 1e6}, {"rms_norm_eps": 1e-5})),
    Model(
        "skywork_moe_std",
        skywork_moe(
            vocab_size=263, hidden_size=36, intermediate_size=26, num_hidden_layers=2,
            num_attention_heads=9, num_key_value_heads=9, num_experts=[5],
            moe_gate_norm_std=1.75, max_position_embeddings=320),
        mistakes=({"moe_gate_norm_std": 1.0},)),
    Model(
        "skywork_moe_fp8",
        skywork_moe(
            vocab_size=283, hidden_size=90, intermediate_size=44, num_hidden_layers=2,
            num_attention_heads=9, num_key_value_heads=9, num_experts=[5],
            max_position_embeddings=448,
            quantization_config={"activation_scheme": "dynamic", "quant_method": "fp8"}),
        dtype="FP8",
        mistakes=({"moe_gate_norm_std": 1.118}, {"rms_norm_eps": 1e-5}),
        gain={".w1.": 1.6, ".w3.": 0.6, ".w2.": 1.3}),
    Model(
        "mixtral", MIXTRAL,
        mistakes=({"rope_theta": 1e4}, {"rms_norm_eps": 1e-6})),
    Model(
        "mixtral_swa",
        mixtral(
            vocab_size=293, hidden_size=44, intermediate_size=28, num_hidden_layers=3,
            num_attention_heads=6, num_key_value_heads=3, head_dim=10, num_local_experts=5,
            sliding_window=9, max_position_embeddings=352),
        mistakes=({"sliding_window": None}, {"sliding_window": 8}, {"sliding_window": 10})),
    Model("mixtral_sharded", MIXTRAL, shards=3, seed="mixtral"),
    Model(
        "qwen3_moe",
        qwen3_moe(
            vocab_size=311, hidden_size=42, intermediate_size=70, moe_intermediate_size=14,
            num_hidden_layers=3, num_attention_heads=12, num_key_value_heads=3, head_dim=10,
            num_experts=24, num_experts_per_tok=8, mlp_only_layers=[1], max_window_layers=3,
            max_position_embeddings=480),
        mistakes=({"norm_topk_prob": False}, {"num_experts_per_tok": 7}, {"rope_theta": 1e4},
                  {"rms_norm_eps": 1e-5}),
        gain={"down_proj": 2.0}),
    Model(
        "qwen3_moe_fp8_block",
        # One dense layer, one of experts. Hidden, FFN and projection sizes are above one block of
        # 128 and none is a multiple of it; heads of 32 put the slices of ranks, and k and v behind
        # q, into the middle of blocks.
        qwen3_moe(
            vocab_size=199, hidden_size=136, intermediate_size=208, moe_intermediate_size=144,
            num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
            num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0], max_window_layers=2,
            max_position_embeddings=260,
            quantization_config={
                "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.gate"],
                "weight_block_size": [128, 128]}),
        dtype="FP8", scaling="block",
        mistakes=({"norm_topk_prob": False}, {"rope_theta": 1e4}, {"rms_norm_eps": 1e-5}),
        gain={"down_proj": 2.0}),
    Model(
        "qwen3_moe_fp8_channel",
        qwen3_moe(
            vocab_size=271, hidden_size=56, intermediate_size=78, moe_intermediate_size=30,
            num_hidden_layers=3, num_attention_heads=10, num_key_value_heads=5, head_dim=12,
            num_experts=9, num_experts_per_tok=3, mlp_only_layers=[1], max_window_layers=3,
            max_position_embeddings=276,
            quantization_config={
                "config_groups": {"group_0": {
                    "input_activations": {
                        "dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True,
                        "type": "float"},
                    "output_activations": None, "targets": ["Linear"],
                    "weights": {
                        "dynamic": False, "num_bits": 8, "strategy": "channel", "symmetric": True,
                        "type": "float"}}},
                "format": "float-quantized", "ignore": ["lm_head", "re:.*mlp.gate$"],
                "kv_cache_scheme": None, "quant_method": "compressed-tensors",
                "quantization_status": "compressed"}),
        dtype="FP8", scaling="channel",
        mistakes=({"norm_topk_prob": False}, {"rope_theta": 1e4}, {"rms_norm_eps": 1e-5}),
        gain={"down_proj": 2.0}),
    Model(
        "qwen3_moe_nonorm",
        qwen3_moe(
            vocab_size=317, hidden_size=46, intermediate_size=34, moe_intermediate_size=22,
            num_hidden_layers=4, num_attention_heads=10, num_key_value_heads=2, head_dim=6,
            num_experts=13, num_experts_per_tok=5, norm_topk_prob=False, decoder_sparse_step=2,
            max_window_layers=4, max_position_embeddings=288, torch_dtype="float16"),
        dtype="F16",
        mistakes=({"norm_topk_prob": True},),
        gain={"down_proj": 1.5}),
    Model(
        "olmoe",
        olmoe(
            vocab_size=331, hidden_size=42, intermediate_size=18, num_hidden_layers=3,
            num_attention_heads=7, num_key_value_heads=7, num_experts=11, num_experts_per_tok=3,
            max_position_embeddings=336),
        mistakes=({"norm_topk_prob": True}, {"rms_norm_eps": 1e-6})),
    Model(
        "olmoe_clip",
        olmoe(
            vocab_size=337, hidden_size=60, intermediate_size=26, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, num_experts=9, num_experts_per_tok=4,
            clip_qkv=0.75, rms_norm_eps=1e-5, max_position_embeddings=304),
        mistakes=({"clip_qkv": None}, {"norm_topk_prob": True})),
    Model(
        "llama2",
        llama(
            vocab_size=299, hidden_size=70, intermediate_size=118, num_hidden_layers=2,
            num_attention_heads=7, num_key_value_heads=7, pad_token_id=0, torch_dtype="float16",
            max_position_embeddings=416),
        dtype="F16",
        mistakes=({"rope_theta": 5e5}, {"rms_norm_eps": 1e-6})),
    Model(
        "llama3",
        llama(
            vocab_size=313, hidden_size=84, intermediate_size=106, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, rope_theta=500000.0,
            bos_token_id=309, eos_token_id=310, max_position_embeddings=544),
        mistakes=({"rope_theta": 1e4},)),
    Model(
        "llama31",
        llama(
            vocab_size=347, hidden_size=58, intermediate_size=98, num_hidden_layers=3,
            num_attention_heads=9, num_key_value_heads=3, head_dim=14, rope_theta=500000.0,
            rope_scaling=LLAMA3_SCALING, tie_word_embeddings=True,
            bos_token_id=340, eos_token_id=[341, 344, 345], max_position_embeddings=1024),
        mistakes=({"rope_scaling": None}, {"rope_scaling": {**LLAMA3_SCALING, "factor": 4.0}},
                  {"rope_scaling": {**LLAMA3_SCALING, "high_freq_factor": 3.0}},
                  {"rope_scaling": {**LLAMA3_SCALING, "low_freq_factor": 2.0}}),
        # With tied embeddings the last token favours itself; strong layers outweigh that.
        gain={"o_proj": 4.0, "down_proj": 4.0}),
    Model(
        "deepseek_67b",
        llama(
            vocab_size=277, hidden_size=50, intermediate_size=74, num_hidden_layers=2,
            num_attention_heads=5, num_key_value_heads=1, rms_norm_eps=1e-6,
            bos_token_id=270, eos_token_id=271, torch_dtype="float32",
            max_position_embeddings=272),
        dtype="F32",
        mistakes=({"rope_theta": 5e5}, {"rms_norm_eps": 1e-5})),
    Model(
        "qwen2",
        qwen2(
            vocab_size=319, hidden_size=66, intermediate_size=94, num_hidden_layers=2,
            num_attention_heads=11, num_key_value_heads=11, sliding_window=8,
            max_window_layers=1, max_position_embeddings=384),
        mistakes=({"use_sliding_window": True}, {"rope_theta": 1e4})),
    Model(
        "skywork_13b",
        skywork(
            vocab_size=289, hidden_size=72, intermediate_size=86, num_hidden_layers=2,
            num_attention_heads=9, max_position_embeddings=368),
        mistakes=({"rope_theta": 1e6}, {"rms_norm_eps": 1e-5})),
]


# ------------------------------------------------------------------------------- the reference


class SkyworkGate(torch.nn.Linear):
    """Mixtral's gate with Skywork-MoE's normalisation.

    Each token's logits are divided by (their standard deviation / target), where the standard
    deviation has the divisor E - 1 and no epsilon. The mean is not subtracted. Softmax over all
    experts, top-2 and the renormalisation of the two follow as in Mixtral.
    """

    def __init__(self, hidden_size, num_experts, target_std):
        super().__init__(hidden_size, num_experts, bias=False)
        self.target_std = target_std

    def forward(self, x):
        logits = super().forward(x)
        return logits / (logits.std(dim=-1, keepdim=True) / self.target_std)


def new_reference(config):
    """The reference module of a config.json, in float32, with weights still to be loaded."""
    keys = {k: v for k, v in config.items()
            if k not in ("model_type", "architectures", "quantization_config", "torch_dtype")}
    model_type = config["model_type"]
    if model_type == "skywork_moe":
        model_type = "mixtral"
        keys["num_local_experts"] = keys.pop("num_experts")[0]
        keys["num_experts_per_tok"] = 2
    elif model_type == "skywork":
        model_type = "llama"
    reference_config = AutoConfig.for_model(model_type, **keys)
    model = AutoModelForCausalLM.from_config(
        reference_config, attn_implementation="eager", dtype=torch.float32)
    if config["model_type"] == "skywork_moe" and config["moe_use_logits_norm"]:
        for layer in model.model.layers:
            layer.block_sparse_moe.gate = SkyworkGate(
                config["hidden_size"], config["num_experts"][0], config["moe_gate_norm_std"])
    return model.eval()


def top_k(config):
    return config.get("num_experts_per_tok", 2)


def gates(model):
    return [m for name, m in model.named_modules() if name.endswith(".gate")]


# --------------------------------------------------------------------------------- checkpoints


def initial_std(name, shape):
    """Keeps activations near unit scale and the residual stream near STREAM_STD."""
    if "embed_tokens" in name:
        return STREAM_STD
    if name.endswith(".bias"):
        return 0.5
    fan_in = shape[-1] ** -0.5
    if "o_proj" in name or "down_proj" in name or ".w2." in name:
        return 2.0 * STREAM_STD * fan_in
    if "q_proj" in name or "k_proj" in name:
        return 1.4 * fan_in
    if "lm_head" in name or ".gate." in name:
        return 2.0 * fan_in
    return 1.2 * fan_in


def random_weights(spec):
    """The float32 weights of a model under their hub names."""
    generator = torch.Generator().manual_seed(zlib.crc32((spec.seed or spec.name).encode()))
    tied = spec.config["tie_word_embeddings"]
    weights = {}
    for name, parameter in new_reference(spec.config).state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            centre = 1.5 if "q_norm" in name else 1.0
            weights[name] = centre + 0.2 * noise
        else:
            gain = math.prod(g for part, g in spec.gain.items() if part in name)
            weights[name] = gain * initial_std(name, parameter.shape) * noise
    return weights


def is_fp8(name):
    return ".block_sparse_moe.experts." in name or "_proj." in name


def spread(scale, shape):
    """Scales of rows, of blocks or of the whole as a tensor that multiplies a matrix of that shape."""
    if scale.dim() == 2 and scale.shape != (shape[0], 1):
        scale = scale.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
        return scale[:shape[0], :shape[1]]
    return scale.reshape(-1, 1) if scale.numel() > 1 else scale


def quantised(spec, name, w, index):
    """An FP8 matrix and its scales, in each of the forms that checkpoints have.

    A scale for the tensor has shape [] or [1]; those of rows [rows, 1] or [rows], F32 or BF16;
    those of blocks are F32 or BF16."""
    other = torch.bfloat16 if index % 3 == 0 else torch.float32
    if spec.scaling == "tensor":
        scale, suffix = w.abs().max() / FP8_MAX, "_scale"
        scale = scale.reshape(1) if index % 2 else scale
    elif spec.scaling == "channel":
        scale, suffix = (w.abs().amax(dim=1) / FP8_MAX).to(other), "_scale"
        scale = scale.reshape(-1, 1) if index % 2 else scale
    else:
        pad = [-n % FP8_BLOCK for n in w.shape]
        padded = torch.nn.functional.pad(w, (0, pad[1], 0, pad[0])).abs()
        blocks = padded.unflatten(1, (-1, FP8_BLOCK)).unflatten(0, (-1, FP8_BLOCK))
        scale, suffix = (blocks.amax(dim=(1, 3)) / FP8_MAX).to(other), "_scale_inv"
    codes = (w / spread(scale.float(), w.shape)).clamp(-FP8_MAX, FP8_MAX)
    return {name: codes.to(torch.float8_e4m3fn), name + suffix: scale}


def uneven(name, w):
    """Makes the scales of rows and blocks differ, so that a wrong one shows."""
    row = torch.arange(w.shape[0])[:, None]
    column = torch.arange(w.shape[1])[None, :]
    phase = zlib.crc32(name.encode()) % 7
    factor = 0.6 + 0.8 * ((3 * (row // FP8_BLOCK) + 2 * (column // FP8_BLOCK) + phase) % 5) / 4
    return w * factor * (0.8 + 0.4 * (row * 5 % 7) / 6)


def stored_tensors(spec, weights):
    """Rounds the weights to the stored type. FP8 tensors get scales."""
    if spec.dtype != "FP8":
        dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[spec.dtype]
        return {name: w.to(dtype) for name, w in weights.items()}
    tensors = {}
    for index, (name, w) in enumerate(weights.items()):
        if not is_fp8(name):
            tensors[name] = w.to(torch.bfloat16)
            continue
        w = w if spec.scaling == "tensor" else uneven(name, w)
        tensors.update(quantised(spec, name, w, index))
    return tensors


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write("\n")


def write_shards(tensors, folder, count):
    """Spreads the tensors over count files of about equal size, with the hub's index."""
    sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
    total, seen, weight_map = sum(sizes.values()), 0, {}
    for name in tensors:
        shard = seen * count // total + 1
        weight_map[name] = f"model-{shard:05d}-of-{count:05d}.safetensors"
        seen += sizes[name]
    for file in set(weight_map.values()):
        part = {name: t for name, t in tensors.items() if weight_map[name] == file}
        save_file(part, os.path.join(folder, file), {"format": "pt"})
    write_json(os.path.join(folder, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_checkpoint(spec, folder):
    tensors = stored_tensors(spec, random_weights(spec))
    write_json(os.path.join(folder, "config.json"), spec.config)
    if spec.shards == 1:
        save_file(tensors, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    else:
        write_shards(tensors, folder, spec.shards)


def read_checkpoint(folder):
    """The stored tensors in float32; FP8 tensors multiplied by their scales."""
    tensors = {}
    for file in sorted(os.listdir(folder)):
        if file.startswith("model") and file.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(folder, file)))
    scales = {name: t for name, t in tensors.items()
              if name.endswith((".weight_scale", ".weight_scale_inv"))}
    weights = {name: t.float() for name, t in tensors.items() if name not in scales}
    for name, scale in scales.items():
        w = weights[name.removesuffix("_inv").removesuffix("_scale")]
        w *= spread(scale.float(), w.shape)
    return weights


def load_reference(folder, **edits):
    """The reference of a stored folder, with config keys optionally changed."""
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    model = new_reference({**config, **edits})
    missing, unexpected = model.load_state_dict(read_checkpoint(folder), strict=False)
    tied = ["lm_head.weight"] if config["tie_word_embeddings"] else []
    check(missing == tied and not unexpected, f"{folder}: {missing} {unexpected}")
    model.tie_weights()
    return model


def load_published(folder):
    """The same through transformers' own loader, which also judges names and config keys."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    check(not any(info.values()), f"{folder}: {info}")
    return model.eval()


def check(condition, text):
    if not condition:
        raise SystemExit(f"make_golden: {text}")


# --------------------------------------------------------------------------- greedy and margins


class RouterMargins:
    """Collects, for every token that passes a gate, the gap between the last expert chosen and the
    first one not chosen, in units of that token's router logit std."""

    def __init__(self, model, k):
        self.gaps = []
        self.k = k
        self.hooks = [gate.register_forward_hook(self.on_logits) for gate in gates(model)]

    def on_logits(self, _gate, _inputs, logits):
        best = logits.topk(self.k + 1, dim=-1).values
        self.gaps.append((best[:, -2] - best[:, -1]) / logits.std(dim=-1))

    def smallest(self, rows):
        """The smallest gap of each batch row since the last call; inf without a router."""
        gaps = [g.reshape(rows, -1).amin(dim=1) for g in self.gaps]
        self.gaps = []
        return torch.stack(gaps).amin(dim=0) if gaps else torch.full((rows,), math.inf)

    def remove(self):
        for hook in self.hooks:
            hook.remove()


def top_gap(logits):
    best = logits.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def decode_greedy(model, prompts, k):
    """Decodes all prompts [B, T] together: tokens [B, 64], and each row's smallest logit margin
    (in units of the logit std) and smallest router margin."""
    rows = len(prompts)
    logit_margin = torch.full((rows,), math.inf)
    router_margin = torch.full((rows,), math.inf)
    router = RouterMargins(model, k)
    tokens, cache, step = [], None, prompts
    for _ in range(GREEDY_TOKENS):
        out = model(step, past_key_values=cache, use_cache=True)
        logits, cache = out.logits[:, -1], out.past_key_values
        logit_margin = torch.minimum(logit_margin, top_gap(logits) / logits.std(dim=-1))
        router_margin = torch.minimum(router_margin, router.smallest(rows))
        step = logits.argmax(dim=-1, keepdim=True)
        tokens.append(step)
    router.remove()
    return torch.cat(tokens, dim=1), logit_margin, router_margin


def is_varied(tokens):
    return (len(set(tokens.tolist())) >= MIN_DISTINCT
            and len(set(tokens[-24:].tolist())) >= MIN_DISTINCT_TAIL)


def find_prompt(model, config, length, generator):
    """A random prompt whose greedy continuation stays far from any near tie.

    Tries rounds of prompts until one keeps twice the least margins; the best one must keep them."""
    vocabulary = config["vocab_size"]
    best = (0.0, None, None)
    for _ in range(1 if length == 1 else ROUNDS):
        if length == 1:
            prompts = torch.arange(FIRST_PLAIN_TOKEN, vocabulary)[:, None]
        else:
            prompts = torch.randint(
                FIRST_PLAIN_TOKEN, vocabulary, (CANDIDATES, length), generator=generator)
        tokens, logit_margin, router_margin = decode_greedy(model, prompts, top_k(config))
        score = torch.minimum(logit_margin / MIN_LOGIT_MARGIN, router_margin / MIN_ROUTER_MARGIN)
        score[[not is_varied(row) for row in tokens]] = 0
        i = int(score.argmax())
        best = max(best, (float(score[i]), prompts[i], tokens[i]), key=lambda b: b[0])
        if best[0] > 2:
            break
    check(best[0] > 1, f"no prompt of {length} tokens without near ties, best {best[0]:.2f} of "
                       "the least margins; change the seed")
    return best[1], best[2]


def judge(model, prompt, greedy, k):
    """One pass over prompt and continuation, without a cache, confirms the greedy tokens.

    Returns the smallest top1 - top2 logit gap, absolute and in units of the logit std, and the
    smallest router margin."""
    router = RouterMargins(model, k)
    sequence = torch.cat([prompt, greedy[:-1]])
    logits = model(sequence[None], use_cache=False).logits[0, len(prompt) - 1:]
    router_margin = float(router.smallest(1))
    router.remove()
    check(torch.equal(logits.argmax(dim=-1), greedy), "cached and plain decoding disagree")
    gap = top_gap(logits)
    return float(gap.min()), float((gap / logits.std(dim=-1)).min()), router_margin


# --------------------------------------------------------------------------------- golden files


def prompt_logits(model, prompt):
    return model(prompt[None], use_cache=False).logits[0].contiguous()


def check_mistakes(spec, folder, prompt, logits):
    """Every listed config edit must move some logit by far more than a rounding error."""
    smallest = math.inf
    for edit in spec.mistakes:
        wrong = prompt_logits(load_reference(folder, **edit), prompt)
        change = float((wrong - logits).abs().max() / logits.std())
        least = 1e-3 if "rms_norm_eps" in edit else 2e-2
        check(change > least, f"{spec.name}: {edit} changes the logits by {change:.1e} std only")
        smallest = min(smallest, change)
    return smallest


def check_published_loader(spec, folder, prompt, logits):
    if spec.config["model_type"] in ("skywork_moe", "skywork") or spec.dtype == "FP8":
        return  # no class, or one that wants a GPU to dequantise
    published = prompt_logits(load_published(folder), prompt)
    check(torch.equal(published, logits), f"{spec.name}: from_pretrained gives other logits")


def golden_json(golden):
    """JSON with one key a line and token lists unbroken."""
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items() if k != "prompts"]
    prompts = ["    {\n" + ",\n".join(f"      {json.dumps(k)}: {json.dumps(v)}"
                                      for k, v in p.items()) + "\n    }"
               for p in golden["prompts"]]
    lines.append('  "prompts": [\n' + ",\n".join(prompts) + "\n  ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def make(spec, out):
    folder = os.path.join(out, spec.name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    write_checkpoint(spec, folder)
    model = load_reference(folder)

    generator = torch.Generator().manual_seed(zlib.crc32((spec.seed or spec.name).encode()) + 1)
    prompts, tensors, margins = [], {}, []
    for i, length in enumerate(PROMPT_LENGTHS):
        prompt, greedy = find_prompt(model, spec.config, length, generator)
        gap, logit_margin, router_margin = judge(model, prompt, greedy, top_k(spec.config))
        margins.append((logit_margin, router_margin))
        tensors[f"logits.{i}"] = prompt_logits(model, prompt)
        entry = {"tokens": prompt.tolist(), "greedy": greedy.tolist(), "min_margin": round(gap, 5)}
        if gates(model):
            entry["min_router_margin"] = round(router_margin, 6)
        prompts.append({**entry, "logits": f"logits.{i}"})
    logit_std = float(torch.cat(list(tensors.values())).std(dim=-1).mean())
    logit_margin, router_margin = (min(m) for m in zip(*margins))
    check(logit_margin > MIN_LOGIT_MARGIN, f"{spec.name}: logit margin {logit_margin:.1e}")
    check(router_margin > MIN_ROUTER_MARGIN, f"{spec.name}: router margin {router_margin:.1e}")
    check_published_loader(spec, folder, prompt, tensors[f"logits.{i}"])
    mistake = check_mistakes(spec, folder, prompt, tensors[f"logits.{i}"])

    golden = {
        "family": spec.config["model_type"],
        "reference": f"transformers {transformers.__version__} {type(model).__name__}",
        "dtype": "F32",
        "weights_dtype": spec.dtype,
        "logit_std": round(logit_std, 5),
        "prompts": prompts,
    }
    with open(os.path.join(folder, "golden.json"), "w") as f:
        f.write(golden_json(golden))
    save_file(tensors, os.path.join(folder, "golden.safetensors"))
    report(spec, folder, model, logit_std, logit_margin, router_margin, mistake)


def report(spec, folder, model, logit_std, logit_margin, router_margin, mistake):
    parameters = sum(p.numel() for p in model.parameters())
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    router = f"{router_margin:.4f} std" if gates(model) else "-"
    least = f"{mistake:.2g} std" if spec.mistakes else "-"
    print(f"{spec.name:17} {spec.dtype:4} {parameters:7} parameters {size / 1000:4.0f} kB  logit "
          f"std {logit_std:.2f}  margin {logit_margin:.4f} std  router margin {router}  "
          f"least mistake {least}", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Write tests/data/golden.")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="write only these folders")
    parser.add_argument("--out", default=os.path.join(root, "tests", "data", "golden"))
    args = parser.parse_args()
    known = [spec.name for spec in MODELS]
    for name in args.only or []:
        check(name in known, f"unknown model {name}; known: {' '.join(known)}")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with torch.no_grad():
        for spec in MODELS:
            if not args.only or spec.name in args.only:
                make(spec, args.out)


if __name__ == "__main__":
    main()
