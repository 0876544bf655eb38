#!/usr/bin/env python3
"""Writes tests/data/tokenizers: small tokenizers of every kind, with reference ids and texts.

Each folder holds a tokenizer as the model hub spells it (tokenizer.json or tokenizer.model, and the
small files beside it), trained here on the sentences below, and expected.json:

  plain, full  ids of each text of texts.json, the first without special tokens, the second with all
               of them recognised and inserted
  decoded      the text of the ids in `full` without special tokens, in hex; null: the text itself
  random       [[ids, hex]]: what ids chosen at random decode to
  pieces       tokenizer.json only: bytes of each piece that the pre-tokenizer cuts a text into
  scalars      hashes over ids and pieces of every assigned character in context, see scalar_hashes()

The references are the `tokenizers` and `sentencepiece` packages, and transformers where its classes
add to them.

Needs tokenizers 0.22, sentencepiece 0.2 and transformers 4.57. The output depends on the seeds alone.
Usage: make_tokenizer_cases.py [--only KIND ...] [--out DIR]
"""

import argparse
import io
import json
import os
import random
import sys
import unicodedata
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import sentencepiece as spm
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer

MARK = "\u2581"

# ---- training text -------------------------------------------------------------------------------

ENGLISH = """
The server reads a line, turns it into tokens and writes the answer as it comes.
It's a small model, but it doesn't forget what we've said; they'll see, I'm sure you'd agree.
In 1998 there were 365 days, 12 months and 52 weeks; in 2024 there are 366 days.
Prices rose from 1,234.50 to 98,765.43 between 10:30 and 23:59 on 2021-07-04.
int main(void) { for (int i = 0; i < 100; i++) printf("%d\\n", i); return 0; }
def encode(self, text):\n    if not text:\n        return []\n    return [self.vocab[c] for c in text]
Experts are chosen by a router: two of sixteen for each token, and their outputs are added.
Once upon a time a fox lived in a cozy den under an old oak tree, and every day it went for a walk.
"""
OTHERS = """
模型读取一行文字，把它变成词元，然后逐个写出答案。每天早上我都会喝一杯茶，看一会儿书。
今天天气很好，我们去公园散步吧。价格从一千二百元涨到了三千元。
これは小さなモデルですが、よく働きます。東京の天気は晴れです。
오늘은 날씨가 좋습니다. 작은 모델이지만 잘 작동합니다.
Сервер читает строку и отвечает. Маленькая модель работает быстро и хорошо.
Der Bär läuft über die Straße, während das Mädchen schöne Äpfel ißt. Voilà un café crème à la carte.
النموذج صغير لكنه يعمل جيدا. שלום עולם, זה מודל קטן.
Ο διακομιστής διαβάζει μια γραμμή. मॉडल छोटा है लेकिन अच्छा काम करता है।
Tiếng Việt có nhiều dấu thanh, ví dụ: mẹ, mẻ, mẽ. naïve façade déjà vu
😀😁😂 🤖🚀 ✨ 👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ∑∫√∞≈≠ € £ ¥ © ™ … – — “quotes”
"""


def training_lines():
    rng = random.Random(20240607)
    english = [s for s in ENGLISH.split("\n") if s]
    others = [s for s in OTHERS.split("\n") if s]
    words = " ".join(english).split()
    lines = []
    for _ in range(400):
        lines.append(rng.choice(english))
        lines.append(" ".join(rng.choice(words) for _ in range(rng.randint(3, 14))))
        if rng.random() < 0.5:
            lines.append(rng.choice(others))
        if rng.random() < 0.2:
            lines.append("    " * rng.randint(1, 3) + rng.choice(words) + "\t" + rng.choice(words))
    return lines


# ---- texts to encode -----------------------------------------------------------------------------

TEXTS = [
    "", " ", "  ", "\n", "\t", "\r\n", "a", "A", "1", "é", "e\u0301", "中", "😀", "\u0000",
    "Hello", " Hello", "  Hello", "Hello ", "Hello  ", " Hello world ", "Hello world, how are you?",
    "I'm sure they'll say it's what we've said; you'd agree. I'M SURE THEY'LL. 'ſ K",
    "don't DON'T Don’t", "it's''s's'", "'s", " 's 't 're 've 'm 'll 'd",
    "0", "12", "123", "1234", "12345", "1234567890123456789", "3.14159, 1,234.50 and 1e-5",
    "a1b22c333d4444", "٣٤٥ ½ ² Ⅷ ①②③ 三十", "2+3=", "10:30-23:59",
    "one  two   three    four     five", "x" + " " * 37 + "y", " " * 64, "a \n b", "a\n\n\nb",
    "line\r\nline\r\n\r\n  indented\r\n", "\t\ttabs\t and \t spaces \t", "trailing newline\n",
    " \n \n\n \n", "word \n", "\n word", "a\u00a0b\u2003c\u3000d\u200be\u180ef\u0085g\u2028h",
    "\x01\x02\x1b[31mred\x1b[0m\x7f", "a\u0000b\u0000\u0000c",
    "模型读取一行文字，把它变成词元。", "中文 English 混合 mixed 123 数字", "。，、；：？！",
    "これはテストです。カタカナ・ひらがな", "오늘은 날씨가 좋습니다", "가각\u1100\u1161\u11a8",
    "Сервер читает строку", "ΑΒΓ αβγς Ο διακομιστής", "Straße ẞ İ ı ﬁ ﬀ Ǆ",
    "cafe\u0301 café a\u0323\u0307 \u1e69 s\u0323\u0307 \u0344 \u212b \u2126 \u0958",
    "\u0301\u0301leading marks", "नमस्ते क्षत्रिय ज्ञ", "ภาษาไทย ไม่มีช่องว่าง", "தமிழ் క తెలుగు",
    "النموذج صغير", "שָׁלוֹם עולם", "abc \u202eRTL\u202c def \u2067x\u2069", "Tiếng Việt mẹ mẻ mẽ",
    "👩‍👩‍👧‍👦 family", "👍🏽👍🏿", "🇩🇪🇫🇷🇯🇵🇺", "✨🤖🚀 ⚙️ ❤️‍🔥", "#️⃣*️⃣1️⃣", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𐍈 𒀀",
    "\U0010ffff\ufffe\uffff\ufdd0\ue000", "∑∫√∞≈≠ € £ ¥ © ™ … – — “quotes” ‘x’",
    "foo_bar fooBar FooBar FOO_BAR foo-bar foo.bar", "https://example.com/a?b=c&d=%20#e",
    "for (int i = 0; i < 100; i++) {\n\tprintf(\"%d\\n\", i);\n}\n", "!!!???...,,,;;;---___***",
    "$100 #tag @user 50% a&b \\ / | ~ ` ^", "a.b.c.d", "((())){{{}}}[[[]]]<<<>>>",
    "<|endoftext|>", "a<|endoftext|>b", "<|im_start|>user\nhi<|im_end|>\n", "<s>", "</s>", "<unk>",
    " <s> </s> ", "<s>a</s>b<unk>c", "<|begin_of_text|>x<|eot_id|>", "<|endoftext|", "<<s>>",
    "<think>\nhm\n</think>", "<0x0A><0x41>", MARK + "a" + MARK, MARK, " " + MARK + " ",
    "<｜begin▁of▁sentence｜>hi<｜end▁of▁sentence｜>", "xx<mask>  yy  <mask>zz", "  <R> x <L> y <B> z",
    "word wordy sword word", "a word", "æøåöúÿ øre", "[USER]hi[SEP][BOT]",
    "Ġ Ċ ĉ âĸģ", "a" * 300, "ab" * 150, "中" * 100, "😀" * 40, "x " * 60, "\u0301" * 40,
    "Once upon a time a fox lived in a cozy den under an old oak tree, and every day it went "
    "for a walk. In 1998 there were 365 days, 12 months and 52 weeks.",
]
INVALID = [
    b"\xff", b"\xc3", b"\xc3(", b"\xe4\xb8", b"\xe4\xb8a", b"a\xe4\xb8\xadb\xe4", b"\xf0\x9f\x98",
    b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80",
    b"\xe0\x80\x80x", b"\x80\x81 \xfe\xff", b"ok \xf0\x90\x80 \xe1\x80\xe2\xf0\x91\x92\xf1\xbf",
    bytes(range(0x70, 0x100)),
]


def text_bytes():
    return [t.encode() for t in TEXTS] + INVALID


def as_text(b):
    return b.decode("utf-8", "replace")


def assigned_ranges():
    """[start, end] of the runs of characters that all the libraries' Unicode tables know alike:
    assigned in Python's version, and not so new that the reference cannot normalise them."""
    ranges, nfkc = [], normalizers.NFKC()
    for c in range(0x110000):
        if unicodedata.category(chr(c)) in ("Cn", "Cs", "Co"):
            continue
        if nfkc.normalize_str(chr(c)) != unicodedata.normalize("NFKC", chr(c)):
            continue
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return ranges


def fnv(h, values):
    for v in values:
        h = ((h ^ (v & 0xFFFFFFFF)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def scalar_text(c):
    return f"a{c}1 {c}b {c}"


def scalar_hashes(encode, ranges):
    """For each block of 4,096 code points that has any: [block, FNV-1a over what encode() gives for
    scalar_text(c) of its characters, each list followed by -1]."""
    hashes = {}
    for start, end in ranges:
        for c in range(start, end + 1):
            h = hashes.get(c >> 12, 0xCBF29CE484222325)
            hashes[c >> 12] = fnv(h, encode(scalar_text(chr(c))) + [-1])
    return [[block, f"{h:016x}"] for block, h in sorted(hashes.items())]


# ---- tokenizer.json of each kind -----------------------------------------------------------------

GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = GPT4.replace("{1,3}", "")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve"
         r"|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [
    r"[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗ]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
]


def byte_level(pre, vocab_size, specials, norm=None, **bpe):
    t = Tokenizer(models.BPE(**bpe))
    if norm:
        t.normalizer = norm
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials,
                                  show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(training_lines(), trainer)
    return t


def split(pattern, behavior="isolated", invert=False, regex=True):
    return pre_tokenizers.Split(Regex(pattern) if regex else pattern, behavior, invert)


def plain_bytes():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def special(text, **flags):
    return AddedToken(text, special=True, normalized=flags.pop("normalized", False), **flags)


def gpt2():
    t = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), 700, ["<|endoftext|>"])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t, {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>",
               "tokenizer_class": "GPT2Tokenizer"}


def llama3():
    pre = pre_tokenizers.Sequence([split(GPT4), plain_bytes()])
    t = byte_level(pre, 800, [], ignore_merges=True)
    t.add_special_tokens([special(s) for s in (
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eot_id|>")])
    bos = ("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[bos])])
    return t, {"bos_token": bos[0], "eos_token": "<|eot_id|>",
               "tokenizer_class": "PreTrainedTokenizerFast"}


def qwen2():
    pre = pre_tokenizers.Sequence([split(QWEN2), plain_bytes()])
    t = byte_level(pre, 900, [], norm=normalizers.NFC())
    t.add_special_tokens([special(s) for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    t.add_tokens([AddedToken(s, normalized=False) for s in ("<think>", "</think>")])
    return t, {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
               "add_bos_token": False, "tokenizer_class": "Qwen2Tokenizer"}


def deepseek():
    pre = pre_tokenizers.Sequence([split(p) for p in DEEPSEEK] +
                                  [pre_tokenizers.Digits(individual_digits=True), plain_bytes()])
    t = byte_level(pre, 800, [])
    t.add_special_tokens([special("<｜begin▁of▁sentence｜>", normalized=True),
                          special("<｜end▁of▁sentence｜>", normalized=True)])
    t.add_tokens([AddedToken(c, normalized=True) for c in "øöúÿ"])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t, {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>",
               "unk_token": None, "add_bos_token": True, "add_eos_token": False,
               "tokenizer_class": "LlamaTokenizerFast"}


def neox():
    """GPT-NeoX and OLMo: runs of spaces are added tokens. With every flag of added tokens."""
    t = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), 700, [],
                   norm=normalizers.NFC())
    t.add_special_tokens([special("<|padding|>"), special("<|endoftext|>"),
                          special("<mask>", lstrip=True)])
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    t.add_tokens([AddedToken("word", single_word=True), AddedToken("<R>", rstrip=True),
                  AddedToken("<L>", lstrip=True, normalized=False),
                  AddedToken("<B>", lstrip=True, rstrip=True)])
    t.post_processor = processors.TemplateProcessing(
        single="$A:0 <|endoftext|>:0", pair="$A:0 $B:1",
        special_tokens=[("<|endoftext|>", t.token_to_id("<|endoftext|>"))])
    return t, {"bos_token": None, "eos_token": "<|endoftext|>", "tokenizer_class": "GPTNeoXTokenizer"}


def prefix_space():
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False),
                                   pre_tokenizers.ByteLevel(add_prefix_space=True)])
    return byte_level(pre, 500, ["<|endoftext|>"]), None


def o200k():
    return byte_level(pre_tokenizers.Sequence([split(O200K), plain_bytes()]), 600,
                      ["<|endoftext|>"]), None


def split_removed():
    """As early GPT-4 conversions: the matches are kept by removing what does not match."""
    pre = pre_tokenizers.Sequence([split(GPT4, "removed", invert=True), plain_bytes()])
    return byte_level(pre, 400, []), None


def split_other(behavior, regex):
    pattern, is_regex = (r"\s+|[a-e]", True) if regex else (" ", False)
    pre = pre_tokenizers.Sequence([split(pattern, behavior, regex=is_regex), plain_bytes()])
    t = byte_level(pre, 400, [])
    t.normalizer = normalizers.Sequence([normalizers.Strip(left=True, right=True),
                                         normalizers.NFKC(),
                                         normalizers.Replace(Regex("[aeiou]{2}"), "A")])
    return t, None


def metaspace(scheme, cut):
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=not cut))
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme=scheme, split=cut)
    t.decoder = decoders.Metaspace(replacement=MARK, prepend_scheme=scheme, split=cut)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>"],
                                  limit_alphabet=150, show_progress=False)
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme=scheme, split=True)
    t.train_from_iterator(training_lines(), trainer)
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme=scheme, split=cut)
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return t, None


def train_sentencepiece(kind, **options):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()), model_writer=model, model_type=kind,
        minloglevel=2, num_threads=1, max_sentence_length=16384, **options)
    return model.getvalue()


def llama_model():
    return train_sentencepiece("bpe", vocab_size=900, byte_fallback=True, character_coverage=0.99,
                               normalization_rule_name="identity", remove_extra_whitespaces=False,
                               split_digits=True, add_dummy_prefix=True)


def llama2():
    """The tokenizer.json that a converted Llama 2 has: merges are rebuilt from the pieces."""
    p = spm.SentencePieceProcessor(model_proto=llama_model())
    vocab = {p.IdToPiece(i): i for i in range(p.GetPieceSize())}
    merges = []
    for piece, i in vocab.items():
        if p.IsByte(i) or p.IsControl(i) or p.IsUnknown(i):
            continue
        for k in range(1, len(piece)):
            if piece[:k] in vocab and piece[k:] in vocab:
                merges.append((-p.GetScore(i), vocab[piece[:k]], vocab[piece[k:]], piece, k))
    merges.sort()
    t = Tokenizer(models.BPE(vocab, [(m[3][:m[4]], m[3][m[4]:]) for m in merges],
                             unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    t.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([special("<unk>"), special("<s>"), special("</s>")])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
               "add_eos_token": False, "tokenizer_class": "LlamaTokenizer", "legacy": False}


JSON_KINDS = {
    "gpt2": gpt2,
    "llama3": llama3,
    "qwen2": qwen2,
    "deepseek": deepseek,
    "neox": neox,
    "prefix_space": prefix_space,
    "o200k": o200k,
    "split_removed": split_removed,
    "split_previous": lambda: split_other("merged_with_previous", True),
    "split_next": lambda: split_other("merged_with_next", True),
    "split_contiguous": lambda: split_other("contiguous", True),
    "split_string": lambda: split_other("contiguous", False),
    "llama2": llama2,
    "metaspace_first": lambda: metaspace("first", False),
    "metaspace_always": lambda: metaspace("always", True),
    "metaspace_never": lambda: metaspace("never", True),
}
# Pretty-printed as some tools write them, or with merges as "a b" as older ones do.
OLD_MERGES = {"gpt2", "deepseek", "llama2"}


# ---- references ----------------------------------------------------------------------------------


def hexed(s):
    return s.encode("utf-8", "surrogatepass").hex()


def decoded_or_null(text, source):
    return None if text.encode() == source else hexed(text)


def random_ids(count, size, seed):
    rng = random.Random(seed)
    return [[rng.randrange(size) for _ in range(rng.randint(1, 24))] for _ in range(count)]


def token_bytes(t, i):
    piece = t.id_to_token(i)
    if piece.startswith("<0x") and len(piece) == 6:
        return bytes([int(piece[3:5], 16)])
    return piece.replace(MARK, " ").encode()


def random_decodes(t, kind, specials):
    """Byte level and Metaspace: the package. With byte fallback: the repair that the C code documents,
    since the package writes one U+FFFD a byte."""
    out = []
    for ids in random_ids(60, t.get_vocab_size(), 7):
        if kind == "llama2":
            text = b"".join(token_bytes(t, i) for i in ids if i not in specials)
            text = text[1:] if text.startswith(b" ") else text
            out.append([ids, hexed(text.decode("utf-8", "replace"))])
        else:
            out.append([ids, hexed(t.decode(ids, skip_special_tokens=True))])
    return out


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def save_tokenizer(t, kind, folder):
    doc = json.loads(t.to_str())
    if kind in OLD_MERGES:
        doc["model"]["merges"] = [" ".join(m) for m in doc["model"]["merges"]]
    write_json(folder / "tokenizer.json", doc)


def expected_from(encode_plain, encode_full, decode):
    plain, full, decoded = [], [], []
    for source in text_bytes():
        text = as_text(source)
        plain.append(encode_plain(text))
        full.append(encode_full(text))
        decoded.append(decoded_or_null(decode(full[-1]), source))
    return {"plain": plain, "full": full, "decoded": decoded}


def piece_lengths(t, text):
    if t.pre_tokenizer is None:
        return [len(text.encode())] if text else []
    pieces = [p for p, _ in t.pre_tokenizer.pre_tokenize_str(text)]
    if isinstance(t.decoder, decoders.ByteLevel):
        return [len(p) for p in pieces]  # one character a byte
    return [len(p.encode()) for p in pieces]


def make_json_kind(kind, folder, ranges):
    t, config = JSON_KINDS[kind]()
    save_tokenizer(t, kind, folder)
    t = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if config:
        write_json(folder / "tokenizer_config.json", config)
    full = t
    if config and config["tokenizer_class"] == "LlamaTokenizerFast":
        full = AutoTokenizer.from_pretrained(folder)._tokenizer  # its class inserts bos
    plain = Tokenizer.from_str(t.to_str())
    plain.encode_special_tokens = True
    expected = expected_from(
        lambda s: plain.encode(s, add_special_tokens=False).ids,
        lambda s: full.encode(s).ids, lambda ids: t.decode(ids, skip_special_tokens=True))
    specials = {i for i, a in t.get_added_tokens_decoder().items() if a.special}
    expected["random"] = random_decodes(t, kind, specials)
    expected["pieces"] = [piece_lengths(t, as_text(source)) for source in text_bytes()]
    expected["scalars"] = scalar_hashes(
        lambda s: plain.encode(s, add_special_tokens=False).ids + piece_lengths(t, s), ranges)
    write_json(folder / "expected.json", expected)


def spm_decode(p, ids):
    """Control pieces vanish, bytes are repaired, one leading space is dropped."""
    text = b""
    for i in ids:
        if p.IsByte(i):
            text += bytes([int(p.IdToPiece(i)[3:5], 16)])
        elif p.IsUnknown(i):
            text += " \u2047 ".encode()
        elif not p.IsControl(i):
            text += p.IdToPiece(i).replace(MARK, " ").encode()
    return (text[1:] if text.startswith(b" ") else text).decode("utf-8", "replace")


def make_spm_kind(kind, folder, ranges):
    if kind == "spm_unigram":
        model = train_sentencepiece("unigram", vocab_size=400, character_coverage=0.98,
                                    normalization_rule_name="identity")
    else:
        model = llama_model()
    (folder / "tokenizer.model").write_bytes(model)
    p = spm.SentencePieceProcessor(model_proto=model)
    encode = lambda s: p.encode(s)
    if kind == "spm_unigram":  # no small files: special tokens are the model's control pieces
        full = lambda s: [p.bos_id()] + p.encode(s)
        expected = expected_from(encode, full, lambda ids: spm_decode(p, ids))
        for i, source in enumerate(text_bytes()):
            if b"<s>" in source or b"</s>" in source:
                expected["full"][i] = expected["decoded"][i] = None
    else:
        legacy = kind == "spm_llama"
        config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "legacy": legacy,
                  "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False,
                                "rstrip": False,
                                "normalized": False, "single_word": False},
                  "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": not legacy}
        if not legacy:
            config["added_tokens_decoder"] = {
                str(p.GetPieceSize() + i): {"content": s, "special": False, "normalized": False,
                                            "lstrip": False, "rstrip": False, "single_word": False}
                for i, s in enumerate(("[USER]", "[BOT]", "[SEP]"))}
        write_json(folder / "tokenizer_config.json", config)
        slow = LlamaTokenizer.from_pretrained(folder, legacy=legacy)
        special_ids = set(slow.all_special_ids)

        def decode(ids):
            kept = [i for i in ids if i not in special_ids]
            if all(i < p.GetPieceSize() for i in kept):
                return spm_decode(p, kept)
            text = "".join(slow.convert_ids_to_tokens(i) for i in kept).replace(MARK, " ")
            return text[1:] if text.startswith(" ") else text

        expected = expected_from(encode, slow.encode, decode)
        if not legacy:
            for i, source in enumerate(text_bytes()):
                if b"[USER]" in source:  # transformers puts a lone space before it
                    expected["plain"][i] = expected["full"][i] = None
    expected["random"] = [[ids, hexed(spm_decode(p, ids))]
                          for ids in random_ids(60, p.GetPieceSize(), 7)]
    if kind != "spm_unigram":
        for pair in expected["random"]:
            pair[1] = hexed(spm_decode(p, [i for i in pair[0] if i > 2]))
    expected["scalars"] = scalar_hashes(encode, ranges) if kind != "spm_llama_new" else []
    write_json(folder / "expected.json", expected)


SPM_KINDS = ("spm_llama", "spm_llama_new", "spm_unigram")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=None, metavar="KIND")
    parser.add_argument("--out", type=Path,
                        default=Path(__file__).resolve().parent.parent / "tests/data/tokenizers")
    args = parser.parse_args()
    ranges = assigned_ranges()
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "texts.json", {"texts": [b.hex() for b in text_bytes()],
                                         "scalars": ranges})
    for kind in list(JSON_KINDS) + list(SPM_KINDS):
        if args.only and kind not in args.only:
            continue
        print(kind, file=sys.stderr)
        folder = args.out / kind
        folder.mkdir(exist_ok=True)
        if kind in JSON_KINDS:
            make_json_kind(kind, folder, ranges)
        else:
            make_spm_kind(kind, folder, ranges)


if __name__ == "__main__":
    main()
