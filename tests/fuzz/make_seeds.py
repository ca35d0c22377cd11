#!/usr/bin/python3
"""Writes the starting inputs of the binary formats to tests/fuzz/corpus/: small files of every kind that a parser tells
apart, so that a short run reaches its depths. Plain packing of the formats' fields; needs only Python.

The seeds of tokenizer_json_fuzz come from tests/tokenizer/make_fuzz_seeds.py.
"""
import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).resolve().parent / "corpus"
BYTES_PER_BLOCK = {  # GGUF's tensor types: id -> (elements, bytes) of a block
    0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 12: (256, 144),
    13: (256, 176), 14: (256, 210)}
U32, F32, BOOL, STRING, ARRAY, I32, U64 = 4, 6, 7, 8, 9, 5, 10


def write(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value_of(kind, value):
    if kind == STRING:
        return text(value)
    return struct.pack({U32: "<I", F32: "<f", BOOL: "<?", I32: "<i", U64: "<Q"}[kind], value)


def key(name, kind, value):
    if isinstance(value, list):
        body = struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(value_of(kind, v) for v in value)
    else:
        body = struct.pack("<I", kind) + value_of(kind, value)
    return text(name) + body


def gguf(keys, tensors, version=3):
    """tensors: (name, shape with the contiguous dimension first, type)."""
    out = struct.pack("<IIQQ", 0x46554747, version, len(tensors), len(keys)) + b"".join(keys)
    data = b""
    for name, shape, kind in tensors:
        elements, size = BYTES_PER_BLOCK[kind]
        count = 1
        for n in shape:
            count *= n
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        # 0x3c everywhere is a modest number in every format: 0.01 as a float, 1.06 as a half.
        data += b"\x3c" * (count // elements * size)
        data += bytes(-len(data) % 32)
    return out + bytes(-len(out) % 32) + data


def alphabet(count):
    """The first characters of GPT-2's byte alphabet."""
    return [chr(c) for c in range(33, 33 + count)]


def byte_level(pre, merges):
    tokens = alphabet(93) + ["Ġ", "He", "ll", "Hell", "<s>", "<|im_end|>"]
    return [key("tokenizer.ggml.model", STRING, "gpt2"), key("tokenizer.ggml.pre", STRING, pre),
            key("tokenizer.ggml.tokens", STRING, tokens),
            key("tokenizer.ggml.token_type", I32, [1] * (len(tokens) - 2) + [3, 3]),
            key("tokenizer.ggml.merges", STRING, merges), key("tokenizer.ggml.bos_token_id", U32, len(tokens) - 2),
            key("tokenizer.ggml.eos_token_id", U32, len(tokens) - 1), key("tokenizer.ggml.add_bos_token", BOOL, True)]


def sentencepiece():
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xB6>", "▁", "H", "e", "l", "o", "▁He", "ll", "llo", "▁w"]
    types = [2, 3, 3, 6, 6, 6] + [1] * 9
    return [key("tokenizer.ggml.model", STRING, "llama"), key("tokenizer.ggml.tokens", STRING, tokens),
            key("tokenizer.ggml.scores", F32, [-float(i) for i in range(len(tokens))]),
            key("tokenizer.ggml.token_type", I32, types), key("tokenizer.ggml.bos_token_id", U32, 1),
            key("tokenizer.ggml.eos_token_id", U32, 2), key("tokenizer.ggml.unknown_token_id", U32, 0),
            key("tokenizer.ggml.add_space_prefix", BOOL, True)]


def config(family, **extra):
    keys = {"embedding_length": (U32, 32), "block_count": (U32, 1), "attention.head_count": (U32, 2),
            "attention.head_count_kv": (U32, 1), "attention.key_length": (U32, 4), "feed_forward_length": (U32, 32),
            "context_length": (U32, 64), "attention.layer_norm_rms_epsilon": (F32, 1e-5)}
    keys.update(extra)
    return [key("general.architecture", STRING, family)] + [key(f"{family}.{k}", *v) for k, v in keys.items()]


def tensors(kind, biases=False, norms=False, tied=True, vocabulary=15):
    """One layer of hidden 32, two query heads and one KV head of 4, FFN 32."""
    out = [("token_embd.weight", [32, vocabulary], kind), ("output_norm.weight", [32], 0)]
    if not tied:
        out.append(("output.weight", [32, vocabulary], kind))
    for name in ("attn_norm", "ffn_norm"):
        out.append((f"blk.0.{name}.weight", [32], 0))
    for name, rows, columns in (("attn_q", 8, 32), ("attn_k", 4, 32), ("attn_v", 4, 32), ("attn_output", 32, 8),
                                ("ffn_gate", 32, 32), ("ffn_up", 32, 32), ("ffn_down", 32, 32)):
        out.append((f"blk.0.{name}.weight", [columns, rows], kind if columns % 32 == 0 else 0))
        if biases and name in ("attn_q", "attn_k", "attn_v"):
            out.append((f"blk.0.{name}.bias", [rows], 0))
    if norms:
        out += [("blk.0.attn_q_norm.weight", [4], 0), ("blk.0.attn_k_norm.weight", [4], 0)]
    return out


def mixture(block):
    """The router and four experts of 8, of which two are taken, and a shared one."""
    blk = f"blk.{block}."
    out = [(blk + "ffn_gate_inp.weight", [32, 4], 0), (blk + "exp_probs_b.bias", [4], 0)]
    for part, columns, rows in (("gate", 32, 8), ("up", 32, 8), ("down", 8, 32)):
        out += [(f"{blk}ffn_{part}_exps.weight", [columns, rows, 4], 1), (f"{blk}ffn_{part}_shexp.weight", [columns, rows], 30)]
    return out


def latent_attention(block, legacy):
    """Two heads of 4 + 2 over a latent of 8, values of 4, queries through a latent of 6."""
    blk = f"blk.{block}."
    out = [(blk + "attn_norm.weight", [32], 0), (blk + "attn_q_a.weight", [32, 6], 1), (blk + "attn_q_a_norm.weight", [6], 0),
           (blk + "attn_q_b.weight", [6, 12], 0), (blk + "attn_kv_a_mqa.weight", [32, 10], 1),
           (blk + "attn_kv_a_norm.weight", [8], 0), (blk + "attn_output.weight", [8, 32], 0), (blk + "ffn_norm.weight", [32], 0)]
    if legacy:
        return out + [(blk + "attn_kv_b.weight", [8, 16], 0)]
    return out + [(blk + "attn_k_b.weight", [4, 8, 2], 0), (blk + "attn_v_b.weight", [8, 4, 2], 0)]


def deepseek2(legacy, mtp):
    """A dense layer, a mixture, and with `mtp` one more mixture that guesses."""
    keys = {"block_count": (U32, 3 if mtp else 2), "attention.q_lora_rank": (U32, 6), "attention.kv_lora_rank": (U32, 8),
            "attention.key_length": (U32, 6 if legacy else 10), "attention.value_length": (U32, 4 if legacy else 8),
            "rope.dimension_count": (U32, 2), "leading_dense_block_count": (U32, 1), "expert_count": (U32, 4),
            "expert_used_count": (U32, 2), "expert_feed_forward_length": (U32, 8), "expert_shared_count": (U32, 1),
            "expert_gating_func": (U32, 2), "expert_group_count": (U32, 2), "expert_group_used_count": (U32, 1),
            "expert_weights_norm": (BOOL, True), "expert_weights_scale": (F32, 2.5)}
    if not legacy:
        keys |= {"attention.key_length_mla": (U32, 6), "attention.value_length_mla": (U32, 4)}
    if mtp:
        keys["nextn_predict_layers"] = (U32, 1)
    weights = [("token_embd.weight", [32, 99], 8), ("output_norm.weight", [32], 0), ("output.weight", [32, 99], 8)]
    weights += latent_attention(0, legacy) + [(f"blk.0.ffn_{m}.weight", [32, 32], 8) for m in ("gate", "up", "down")]
    weights += latent_attention(1, legacy) + mixture(1)
    if mtp:
        weights += latent_attention(2, legacy) + mixture(2) + [("blk.2.nextn.eh_proj.weight", [64, 32], 1)]
        weights += [(f"blk.2.nextn.{norm}.weight", [32], 0) for norm in ("enorm", "hnorm", "shared_head_norm")]
        weights.append(("blk.2.nextn.shared_head_head.weight", [32, 99], 8))
    return gguf(config("deepseek2", **keys) + byte_level("deepseek-v3", ["H e"]), weights)


def qwen2moe():
    keys = {"expert_count": (U32, 4), "expert_used_count": (U32, 2), "expert_feed_forward_length": (U32, 8),
            "expert_shared_feed_forward_length": (U32, 8)}
    dense = ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight")
    weights = [t for t in tensors(1, biases=True, vocabulary=99) if t[0] not in dense]
    weights += [t for t in mixture(0) if t[0] != "blk.0.exp_probs_b.bias"] + [("blk.0.ffn_gate_inp_shexp.weight", [32], 0)]
    return gguf(config("qwen2moe", **keys) + byte_level("qwen2", ["H e"]), weights)


def gguf_seeds():
    write("gguf_fuzz", "deepseek2_mtp", deepseek2(legacy=False, mtp=True))
    write("gguf_fuzz", "deepseek2_legacy", deepseek2(legacy=True, mtp=False))
    write("gguf_fuzz", "qwen2moe", qwen2moe())
    write("gguf_fuzz", "every_type", gguf([key("general.alignment", U32, 32), key("general.name", STRING, "types")],
                                          [(f"t{kind}", [BYTES_PER_BLOCK[kind][0]], kind) for kind in BYTES_PER_BLOCK]))
    write("gguf_fuzz", "version_2", gguf([key("a", U64, [1, 2]), key("b", BOOL, [True])], [("t", [2, 2, 2], 0)], 2))
    write("gguf_fuzz", "llama_q8_sentencepiece", gguf(config("llama") + sentencepiece(), tensors(8)))
    linear = {"rope.freq_base": (F32, 1e4), "rope.scaling.type": (STRING, "linear"), "rope.scaling.factor": (F32, 2.0)}
    write("gguf_fuzz", "qwen2_linear", gguf(config("qwen2", **linear) + byte_level("qwen2", ["H e", "l l", "He ll"]),
                                            tensors(1, biases=True, vocabulary=99)))
    yarn = {"rope.scaling.type": (STRING, "yarn"), "rope.scaling.factor": (F32, 4.0),
            "rope.scaling.original_context_length": (U32, 16), "rope.scaling.yarn_beta_fast": (F32, 32.0)}
    write("gguf_fuzz", "qwen3_yarn", gguf(config("qwen3", **yarn) + byte_level("deepseek-v3", ["H e"]),
                                          tensors(30, norms=True, tied=False, vocabulary=99)))
    write("gguf_fuzz", "llama3_divisors", gguf(config("llama") + byte_level("llama-bpe", ["H e"]),
                                               tensors(2, vocabulary=99) + [("rope_freqs.weight", [2], 0)]))
    for pre in ("gpt-2", "smollm", "deepseek-r1-qwen"):
        write("gguf_fuzz", f"tokenizer_{pre}", gguf(byte_level(pre, ["H e", "l l"]), []))


def blob(kind, flags, leading, specials, tokens, merges=(), added=(), normalizer=(), splits=(), prefix=(), suffix=()):
    """The compiled tokenizer: see src/model/tokenizer_blob.cc."""
    def string(value):
        return struct.pack("<I", len(value.encode())) + value.encode()
    out = b"MRTOKEN2" + struct.pack("<3I3i", kind, flags, leading, *specials)
    out += struct.pack(f"<I{len(tokens)}I", len(tokens), *[len(t.encode()) for t in tokens])
    out += "".join(tokens).encode() + struct.pack("<I", len(merges)) + b"".join(struct.pack("<3I", *m) for m in merges)
    out += struct.pack("<I", len(added)) + b"".join(struct.pack("<2I", i, f) + string(t) for i, f, t in added)
    out += struct.pack("<I", len(normalizer)) + b"".join(struct.pack("<I", k) + string(a) + string(b) for k, a, b in normalizer)
    out += struct.pack("<I", len(splits)) + b"".join(struct.pack("<5I", *s[:5]) + string(s[5]) for s in splits)
    for ids in (prefix, suffix):
        out += struct.pack(f"<I{len(ids)}I", len(ids), *ids)
    return out


def blobs():
    tokens = alphabet(93) + ["Ġ", "He", "ll", "Hell", "<s>"]
    n = len(tokens)
    merges = [(39, 68, n - 4), (75, 75, n - 3), (n - 4, n - 3, n - 2)]  # H e, l l, He ll
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    found = {
        "byte_level": blob(1, 1, 0, (n - 1, -1, -1), tokens, merges, [(n - 1, 1, "<s>")], [(1, "", "")],
                           [(2, 1, 0, 0, 0, ""), (1, 1, 0, 0, 0, gpt2)], [n - 1], []),
        "every_split": blob(1, 0, 0, (-1, -1, -1), tokens, merges, [(n - 1, 31, "<s>")], [],
                            [(1, behavior, behavior % 2, 0, 0, r"[a-z]+|\d") for behavior in range(1, 6)] +
                            [(3, 1, 0, 0, 0, ""), (4, 1, 0, 1, 1, "")]),
    }
    pieces = ["<unk>", "<s>", "<0xC3>", "<0xB6>", "▁", "H", "e", "l", "o", "▁H", "ll"]
    for leading in range(3):
        found[f"sentencepiece_{leading}"] = blob(2, 6, leading, (1, -1, 0), pieces, [(4, 5, 9), (7, 7, 10)],
                                                 [(1, 1, "<s>")], [(2, "", "▁"), (3, " ", "▁")], [], [1], [1])
    for name, data in found.items():
        write("tokenizer_blob_fuzz", name, data)
    write("packed_model_fuzz", "tokenizer", b"t" + found["byte_level"])


def safetensors(header, data, name, padding=b""):
    raw = json.dumps(header, separators=(",", ":")).encode() + padding
    write("safetensors_fuzz", name, struct.pack("<Q", len(raw)) + raw + data)


def safetensors_seeds():
    safetensors({"__metadata__": {"format": "pt"},
                 "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
                 "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
                 "c": {"dtype": "I64", "shape": [], "data_offsets": [22, 30]}}, bytes(30), "kinds", b"   ")
    safetensors({"e": {"dtype": "F16", "shape": [0, 4], "data_offsets": [0, 0]},
                 "f": {"dtype": "F8_E4M3", "shape": [1, 1, 2], "data_offsets": [0, 2]},
                 "g": {"dtype": "BOOL", "shape": [1], "data_offsets": [2, 3]}}, b"\0\1\1", "empty_and_other")


def packed_header():
    """The header's fields after the magic and version, which the target sets itself (see packed_layout.h)."""
    write("packed_model_fuzz", "header", b"h" + struct.pack("<QIIQQQ", 0, 0, 4096, 4096, 4096, 0))


def configs():
    """Numbers above zero that once made an infinite rotation."""
    base = json.loads((CORPUS / "config_fuzz" / "linear").read_bytes())
    for name, old, new in (("tiny_factor", '"factor": 2', '"factor": 1e-320'),
                           ("tiny_theta", '"rope_theta": 10000.0', '"rope_theta": 5e-324')):
        write("config_fuzz", name, json.dumps(base).replace(old, new).encode())


gguf_seeds()
blobs()
safetensors_seeds()
packed_header()
configs()
