#!/usr/bin/env python3
"""Trains the demo model of configs/demo-moe on the CPU, and exports it in Hugging Face format.

    python3 scripts/make_corpus.py --out build/demo/corpus.txt
    python3 scripts/train_demo.py --corpus build/demo/corpus.txt --out configs/demo-moe

The model is a small Qwen3-MoE. `Model` below computes the same function as transformers'
Qwen3MoeForCausalLM, but runs each expert once per layer on all of its tokens, which makes training
on two cores practical. The run ends with the checks that matter: held-out sums with the
BF16-rounded weights, the load of every expert, logits against transformers, and expected.json
(greedy continuations, computed by transformers in float32 from the stored weights) for the tests.
"""
import argparse
import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

EOT, IM_START, IM_END = SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2

# Qwen's split: words with one leading character, every digit alone, runs of punctuation, blanks.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "decoder_sparse_step": 1,
    "eos_token_id": 0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 2048,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 192,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 1536,
}

PROMPTS = [  # candidates for expected.json
    "Once upon a time", "Once upon a time, there was a little fox", "27+15=", "8+9=17\n64+",
    "Q: What is the capital of France?", "Q: What is 46+38? A:", "Count from 3 to 9:",
    "one, two, three,", "Monday, Tuesday,", "Q: Which month comes after May?",
    "One night, there was a big storm. The thunder went boom,",
    "There was going to be a big party in the park, and Mia was asked to sing.",
    "It was winter, and there was little to eat. Leo had only one piece of bread left.",
    "One sunny day, Max and Ella wanted to visit the other side of the river.",
    "<|im_start|>user\nWhat is 12+34?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is the capital of Japan?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTell me a story about a fox.<|im_end|>\n<|im_start|>assistant\n",
]


# ---- data ----------------------------------------------------------------------------------------

def train_tokenizer(text, vocab_size):
    """Byte-level BPE without a normalizer: decode(encode(s)) == s for every string s."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    for special in SPECIALS:
        text = text.replace(special, "\n")
    tok.train_from_iterator(text.splitlines(keepends=True), trainer)
    assert tok.get_vocab_size() == vocab_size
    return tok


def encode_documents(tok, text):
    """One uint16 array per document, each ending with <|endoftext|>."""
    docs = text.split(EOT)[:-1]
    ids = []
    for i in range(0, len(docs), 8192):
        ids += [np.array(e.ids + [0], np.uint16) for e in tok.encode_batch(docs[i:i + 8192])]
    return ids


class Packer:
    """Serves rows of packed documents. A row begins with a document, half of the time after an
    <|endoftext|>, so that the model knows prompts at position 0 with and without it."""

    def __init__(self, docs, seed):
        self.docs, self.rng = docs, np.random.default_rng(seed)
        self.order, self.next = self.rng.permutation(len(docs)), 0

    def row(self, length):
        parts, total = ([np.zeros(1, np.uint16)], 1) if self.rng.random() < 0.5 else ([], 0)
        while total <= length:
            if self.next == len(self.order):
                self.order, self.next = self.rng.permutation(len(self.docs)), 0
            parts.append(self.docs[self.order[self.next]])
            total += len(parts[-1])
            self.next += 1
        return np.concatenate(parts)[:length + 1]

    def batch(self, rows, length):
        data = np.stack([self.row(length) for _ in range(rows)]).astype(np.int64)
        data = torch.from_numpy(data)
        return data[:, :-1], data[:, 1:]


# ---- model ---------------------------------------------------------------------------------------

class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, i, e, d = c["hidden_size"], c["moe_intermediate_size"], c["num_experts"], c["head_dim"]
        self.heads, self.kv_heads, self.d = c["num_attention_heads"], c["num_key_value_heads"], d
        self.top_k, self.eps = c["num_experts_per_tok"], c["rms_norm_eps"]
        std, out_std = 0.02, 0.02 / math.sqrt(2 * c["num_hidden_layers"])

        def weight(*shape, std=std):
            return nn.Parameter(torch.randn(*shape) * std)
        self.q_proj, self.k_proj = weight(self.heads * d, h), weight(self.kv_heads * d, h)
        self.v_proj = weight(self.kv_heads * d, h)
        self.o_proj = weight(h, self.heads * d, std=out_std)
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.attn_norm, self.mlp_norm = nn.Parameter(torch.ones(h)), nn.Parameter(torch.ones(h))
        self.router = weight(e, h)
        self.gate_up, self.down = weight(e, 2 * i, h), weight(e, h, i, std=out_std)

    def attention(self, x, cos, sin):
        B, T, _ = x.shape
        split = lambda y, n: y.view(B, T, n, self.d).transpose(1, 2)  # noqa: E731
        q, k, v = (split(F.linear(x, w), n) for w, n in (
            (self.q_proj, self.heads), (self.k_proj, self.kv_heads), (self.v_proj, self.kv_heads)))
        q = rotate(F.rms_norm(q, (self.d,), self.q_norm, self.eps), cos, sin)
        k = rotate(F.rms_norm(k, (self.d,), self.k_norm, self.eps), cos, sin)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(B, T, -1), self.o_proj)

    def experts(self, x):
        """x [T, H] to its mixture [T, H], the expert counts [E] and the load-balancing loss."""
        probs = F.linear(x, self.router).softmax(-1)
        weights, ids = probs.topk(self.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        order = ids.flatten().argsort(stable=True)  # the T*K slots, grouped by expert
        counts = torch.bincount(ids.flatten(), minlength=probs.shape[1])
        tokens = order // self.top_k
        parts = []
        for e, xe in enumerate(x[tokens].split(counts.tolist())):
            gate, up = F.linear(xe, self.gate_up[e]).chunk(2, -1)
            parts.append(F.linear(F.silu(gate) * up, self.down[e]))
        y = torch.cat(parts) * weights.flatten()[order, None]
        share = counts / counts.sum()
        aux = probs.shape[1] * (share * probs.mean(0)).sum()
        return torch.zeros_like(x).index_add(0, tokens, y), counts, aux

    def forward(self, x, cos, sin):
        h = x.shape[-1]
        x = x + self.attention(F.rms_norm(x, (h,), self.attn_norm, self.eps), cos, sin)
        y, counts, aux = self.experts(F.rms_norm(x, (h,), self.mlp_norm, self.eps).view(-1, h))
        return x + y.view_as(x), counts, aux


def rotate(x, cos, sin):
    """Rotary embedding, halves convention."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, v, d = c["hidden_size"], c["vocab_size"], c["head_dim"]
        self.eps = c["rms_norm_eps"]
        self.embed = nn.Parameter(torch.randn(v, h) * 0.02)
        self.head = nn.Parameter(torch.randn(v, h) * 0.02)
        self.norm = nn.Parameter(torch.ones(h))
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        freq = c["rope_theta"] ** (-torch.arange(0, d, 2) / d)
        angle = torch.outer(torch.arange(c["max_position_embeddings"]), freq)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        """ids [B, T] to logits [B, T, V], expert counts [L, E] and the mean balancing loss."""
        x, T = F.embedding(ids, self.embed), ids.shape[1]
        counts, aux = [], 0.0
        for layer in self.layers:
            x, c, a = layer(x, self.cos[:T], self.sin[:T])
            counts.append(c)
            aux = aux + a / len(self.layers)
        x = F.rms_norm(x, (x.shape[-1],), self.norm, self.eps)
        return F.linear(x, self.head), torch.stack(counts), aux


def hub_tensors(model):
    """Views of the weights, under the names of the Hub."""
    out = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm,
           "lm_head.weight": model.head}
    for n, layer in enumerate(model.layers):
        p = f"model.layers.{n}."
        out[p + "input_layernorm.weight"] = layer.attn_norm
        out[p + "post_attention_layernorm.weight"] = layer.mlp_norm
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            out[f"{p}self_attn.{name}.weight"] = getattr(layer, name)
        out[p + "mlp.gate.weight"] = layer.router
        for e in range(layer.router.shape[0]):
            gate, up = layer.gate_up[e].chunk(2)
            for name, w in (("gate_proj", gate), ("up_proj", up), ("down_proj", layer.down[e])):
                out[f"{p}mlp.experts.{e}.{name}.weight"] = w
    return {k: v.detach() for k, v in out.items()}


# ---- measures ------------------------------------------------------------------------------------

@torch.no_grad()
def greedy(model, rows, steps):
    """rows [B, T] of equal length; returns their greedy continuations [B, steps]."""
    start = rows.shape[1]
    for _ in range(steps):
        rows = torch.cat((rows, model(rows)[0][:, -1].argmax(-1, keepdim=True)), 1)
    return rows[:, start:]


def sum_accuracy(model, tok, sums):
    """Share of `a+b=c` lines whose answer is right when the context is `a+b=` alone."""
    by_length = {}
    for line in sums:
        prompt, answer = line[:line.index("=") + 1], line[line.index("=") + 1:]
        by_length.setdefault(len(prompt), []).append((tok.encode(prompt).ids, answer))
    right = 0
    for group in by_length.values():
        out = greedy(model, torch.tensor([ids for ids, _ in group]), 4).tolist()
        for (_, answer), ids in zip(group, out):
            text = tok.decode(ids, skip_special_tokens=False)
            right += text.replace(EOT, "\n").split("\n")[0] == answer and len(text) > len(answer)
    return right / len(sums)


@torch.no_grad()
def validate(model, batches):
    """Mean loss and the share of each expert [L, E]."""
    loss, counts = 0.0, 0
    for x, y in batches:
        logits, c, _ = model(x)
        loss += F.cross_entropy(logits.flatten(0, 1), y.flatten()).item() / len(batches)
        counts = counts + c
    return loss, counts / counts.sum(1, keepdim=True)


@torch.no_grad()
def sample(model, tok, prompt, limit=220, temperature=0.8):
    ids = torch.tensor([tok.encode(prompt).ids])
    for _ in range(limit):
        probs = (model(ids)[0][0, -1] / temperature).softmax(-1)
        ids = torch.cat((ids, torch.multinomial(probs, 1)[None]), 1)
        if ids[0, -1] in (0, 2):
            break
    return tok.decode(ids[0].tolist(), skip_special_tokens=False)


# ---- training and export -------------------------------------------------------------------------

def train(model, docs, valid, tok, sums, args):
    packer = Packer(docs, args.seed)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0}],
        lr=args.lr, betas=(0.9, 0.95), fused=True)
    # Short rows teach prompts that begin the context; long ones, stories and high positions.
    lengths = {64: 0.35, 256: 0.3, 512: 0.25, 1024: 0.08, 2048: 0.02}
    start, mean = time.time(), 0.0
    for step in range(args.steps):
        warm, t = min(1, (step + 1) / 100), step / args.steps
        if args.minutes:  # the learning rate then follows the clock
            t = max(t, (time.time() - start) / (60 * args.minutes))
        last = t >= 1 or step + 1 == args.steps
        t = min(t, 1)
        for group in opt.param_groups:
            group["lr"] = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * t)))
        length = int(packer.rng.choice(list(lengths), p=list(lengths.values())))
        x, y = packer.batch(args.tokens // length, length)
        logits, _, aux = model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        (loss + CONFIG["router_aux_loss_coef"] * aux).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.time() - start
            print(f"step {step + 1} train {mean:.4f} aux {aux.item():.3f} {seconds:.0f} s "
                  f"{(step + 1) * args.tokens / seconds:.0f} tok/s", flush=True)
        if (step + 1) % 500 == 0 or last:
            loss, shares = validate(model, valid)
            print(f"step {step + 1} valid {loss:.4f} sums {sum_accuracy(model, tok, sums):.3f} "
                  f"expert shares {shares.min():.3f} to {shares.max():.3f}", flush=True)
        if last:
            break


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def export(model, tok, out):
    tok.save(str(out / "tokenizer.json"))
    write_json(out / "config.json", CONFIG)
    write_json(out / "generation_config.json", {
        "do_sample": True, "eos_token_id": [0, 2], "pad_token_id": 0, "temperature": 0.6,
        "top_p": 0.9, "transformers_version": "4.57.1"})
    write_json(out / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {
            "content": s, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": True} for i, s in enumerate(SPECIALS)},
        "bos_token": None, "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False,
        "eos_token": EOT, "model_max_length": CONFIG["max_position_embeddings"], "pad_token": EOT,
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None})
    stored = {k: v.to(torch.bfloat16).clone() for k, v in hub_tensors(model).items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def check_against_transformers(model, folder, steps=48):
    """Loads the export, compares logits and writes expected.json.

    Where the second and the third expert of a token tie within rounding, two correct programs may
    choose differently; such prompts are neither compared nor written."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tok = AutoTokenizer.from_pretrained(folder)
    worst, found = 0.0, []
    for text in PROMPTS:
        prompt = tok.encode(text)
        assert tok.decode(prompt) == text
        ids, margins = list(prompt), []
        while len(ids) < len(prompt) + steps and ids[-1] not in (0, 2):
            top = hf(torch.tensor([ids])).logits[0, -1].topk(2)
            margins.append((top.values[0] - top.values[1]).item())
            ids.append(top.indices[0].item())
        out = hf(torch.tensor([ids]), output_router_logits=True)
        top = torch.cat(out.router_logits).topk(CONFIG["num_experts_per_tok"] + 1).values
        gap = (top[:, -2] - top[:, -1]).min().item()
        difference = (out.logits - model(torch.tensor([ids]))[0]).abs().max().item()
        print(f"margin {min(margins):.4f} router gap {gap:.1e} difference {difference:.1e} "
              f"{text!r} -> {tok.decode(ids[len(prompt):])!r}")
        if gap > 1e-5:
            worst = max(worst, difference)
        if gap > 1e-4 and min(margins) > 0.05:
            found.append({"text": text, "tokens": prompt, "greedy": ids[len(prompt):],
                          "min_margin": round(min(margins), 4), "min_router_gap": round(gap, 6)})
    print(f"transformers: largest logit difference {worst:.1e}")
    assert worst < 1e-3
    write_json(folder / "expected.json", {"prompts": found})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--corpus", type=Path, default=Path("build/demo/corpus.txt"))
    ap.add_argument("--heldout", type=Path, default=Path("configs/demo-moe/heldout_sums.txt"))
    ap.add_argument("--out", type=Path, default=Path("configs/demo-moe"))
    ap.add_argument("--init", type=Path, help="go on from the model in this folder")
    ap.add_argument("--steps", type=int, default=5000)
    ap.add_argument("--minutes", type=float, default=0,
                    help="end by the clock, where that comes before the last step")
    ap.add_argument("--tokens", type=int, default=2048, help="tokens of one step")
    ap.add_argument("--lr", type=float, default=2.5e-3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    text = args.corpus.read_text(encoding="utf-8")
    sums = args.heldout.read_text().split()
    model = Model(CONFIG)
    if args.init:
        tok = Tokenizer.from_file(str(args.init / "tokenizer.json"))
        stored = load_file(args.init / "model.safetensors")
        for name, w in hub_tensors(model).items():
            w.copy_(stored[name])
    else:
        tok = train_tokenizer(text[:8_000_000], CONFIG["vocab_size"])
    docs = encode_documents(tok, text)
    cut = len(docs) // 100
    packer = Packer(docs[:cut], 0)
    valid = [packer.batch(8, 512) for _ in range(4)]
    print(f"{len(docs)} documents, {sum(map(len, docs))} tokens", flush=True)

    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, docs[cut:], valid, tok, sums, args)

    with torch.no_grad():  # from here on, exactly what is stored
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))
    model.eval()
    loss, shares = validate(model, valid)
    print(f"BF16 weights: valid {loss:.4f}, held-out sums {sum_accuracy(model, tok, sums):.3f}")
    for n, row in enumerate(shares.tolist()):
        print(f"layer {n} expert shares " + " ".join(f"{s:.3f}" for s in row))
    for prompt in ["Once upon a time"] * 3 + ["Q: What is", "Count from", "27+15="]:
        print(f"--- {sample(model, tok, prompt)}")

    # Readers of --out see either the old file or the new one, never half of one.
    args.out.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=args.out.parent, prefix=".demo-moe-"))
    export(model, tok, staging)
    check_against_transformers(model, staging)
    for path in sorted(staging.iterdir()):
        path.chmod(0o644)
        os.replace(path, args.out / path.name)
    shutil.rmtree(staging)


if __name__ == "__main__":
    main()
