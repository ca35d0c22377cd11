#!/usr/bin/python3
"""A checkpoint of DeepSeek-V3's shape with random weights, as its makers publish theirs.

usage: synthetic_deepseek.py FOLDER [--size full|small] [--layers N] [--experts N] [--seed N]

full: every layer has the real sizes (hidden 7168, 128 heads, latents of 1536 and 512, FFN 18432, experts of 2048,
vocabulary 129280), but there are fewer of them: a dense layer, a mixture of 32 experts (of 256), and the MTP layer, which
repeats the embedding and the head. 11.5 GB. small: widths a third to an eighth of those; 0.25 GB.

Matrices are FP8 (e4m3) with a factor for each block of 128 x 128, embeddings, head, norms, router and eh_proj BF16, the
router's selection bias F32; shards of at most 4 GB with an index; config.json with quantization_config; a tokenizer of the
vocabulary's size. Needs nothing but Python. Values are drawn from a few MiB of normally distributed ones, over and over
from other places: what packing does to them does not depend on more.
"""
import argparse
import array
import itertools
import json
import math
import random
import struct
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = {
    "full": dict(hidden_size=7168, num_attention_heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
                 qk_rope_head_dim=64, v_head_dim=128, intermediate_size=18432, moe_intermediate_size=2048,
                 vocab_size=129280, n_routed_experts=32),
    "small": dict(hidden_size=1024, num_attention_heads=16, q_lora_rank=192, kv_lora_rank=64, qk_nope_head_dim=32,
                  qk_rope_head_dim=16, v_head_dim=32, intermediate_size=2304, moe_intermediate_size=512,
                  vocab_size=16160, n_routed_experts=32),
}
SHARD_BYTES = 4 * 10**9
BLOCK = 128


def config(size, layers, experts):
    widths = dict(SIZES[size])
    if experts:
        widths["n_routed_experts"] = experts
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **widths,
        "num_hidden_layers": layers, "first_k_dense_replace": 1, "num_key_value_heads": widths["num_attention_heads"],
        "num_nextn_predict_layers": 1, "n_shared_experts": 1, "num_experts_per_tok": min(8, widths["n_routed_experts"] // 2),
        "n_group": 8 if widths["n_routed_experts"] % 8 == 0 and widths["n_routed_experts"] >= 16 else 4,
        "topk_group": 4 if widths["n_routed_experts"] >= 16 else 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "moe_layer_freq": 1, "hidden_act": "silu",
        "attention_bias": False, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 163840,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
        "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                "weight_block_size": [BLOCK, BLOCK]},
    }


def tensors(c):
    """(name, dtype, shape, name of the tensor it repeats) in the order of layers."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    q_rank, kv_rank = c["q_lora_rank"], c["kv_lora_rank"]

    def fp8(name, rows, columns):
        yield name + ".weight", "F8_E4M3", [rows, columns], None
        yield name + ".weight_scale_inv", "F32", [math.ceil(rows / BLOCK), math.ceil(columns / BLOCK)], None

    def ffn(prefix, width):
        yield from fp8(prefix + "gate_proj", width, hidden)
        yield from fp8(prefix + "up_proj", width, hidden)
        yield from fp8(prefix + "down_proj", hidden, width)

    def layer(index, dense):
        p = f"model.layers.{index}."
        a = p + "self_attn."
        yield p + "input_layernorm.weight", "BF16", [hidden], None
        yield p + "post_attention_layernorm.weight", "BF16", [hidden], None
        yield from fp8(a + "q_a_proj", q_rank, hidden)
        yield a + "q_a_layernorm.weight", "BF16", [q_rank], None
        yield from fp8(a + "q_b_proj", heads * (nope + rope), q_rank)
        yield from fp8(a + "kv_a_proj_with_mqa", kv_rank + rope, hidden)
        yield a + "kv_a_layernorm.weight", "BF16", [kv_rank], None
        yield from fp8(a + "kv_b_proj", heads * (nope + value), kv_rank)
        yield from fp8(a + "o_proj", hidden, heads * value)
        if dense:
            yield from ffn(p + "mlp.", c["intermediate_size"])
            return
        yield p + "mlp.gate.weight", "BF16", [c["n_routed_experts"], hidden], None
        yield p + "mlp.gate.e_score_correction_bias", "F32", [c["n_routed_experts"]], None
        for expert in range(c["n_routed_experts"]):
            yield from ffn(f"{p}mlp.experts.{expert}.", c["moe_intermediate_size"])
        yield from ffn(p + "mlp.shared_experts.", c["moe_intermediate_size"])

    vocabulary = [c["vocab_size"], hidden]
    yield "model.embed_tokens.weight", "BF16", vocabulary, None
    for index in range(c["num_hidden_layers"]):
        yield from layer(index, index < c["first_k_dense_replace"])
    mtp = f"model.layers.{c['num_hidden_layers']}."
    yield mtp + "embed_tokens.weight", "BF16", vocabulary, "model.embed_tokens.weight"
    yield mtp + "enorm.weight", "BF16", [hidden], None
    yield mtp + "hnorm.weight", "BF16", [hidden], None
    yield mtp + "eh_proj.weight", "BF16", [hidden, 2 * hidden], None
    yield from layer(c["num_hidden_layers"], False)
    yield mtp + "shared_head.norm.weight", "BF16", [hidden], None
    yield mtp + "shared_head.head.weight", "BF16", vocabulary, "lm_head.weight"
    yield "model.norm.weight", "BF16", [hidden], None
    yield "lm_head.weight", "BF16", vocabulary, None


WIDTH = {"F8_E4M3": 1, "BF16": 2, "F32": 4}


def bf16(value):
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16


def e4m3(bits):
    exponent, mantissa = bits >> 3 & 15, bits & 7
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if bits & 128 else size


class Values:
    """Bytes of any length, drawn from a pool a kind."""

    def __init__(self, seed):
        self.seed = seed
        draw = random.Random(f"{seed} pools")
        # A block's largest value is 448 after its makers' scaling: the others lie around with a deviation of a fifth.
        codes = [bits for bits in range(256) if bits & 127 != 127]
        codes.sort(key=e4m3)
        edges = [-math.inf] + [(e4m3(a) + e4m3(b)) / 2 for a, b in itertools.pairwise(codes)] + [math.inf]
        below = [0.5 * (1 + math.erf(edge / 90 / math.sqrt(2))) for edge in edges]
        weights = [high - low for low, high in itertools.pairwise(below)]
        self.pools = {
            "F8_E4M3": bytes(draw.choices(codes, weights, k=1 << 21)),
            "BF16": array.array("H", [bf16(draw.gauss(0, 0.02)) for _ in range(1 << 19)]).tobytes(),
        }

    def chunks(self, name, dtype, shape):
        draw = random.Random(f"{self.seed} {name}")
        count = math.prod(shape)
        if name.endswith("norm.weight"):
            yield array.array("H", [bf16(draw.uniform(0.8, 1.2)) for _ in range(count)]).tobytes()
        elif name.endswith("_scale_inv"):
            yield array.array("f", [draw.uniform(0.8, 1.2) * 2.5e-4 for _ in range(count)]).tobytes()
        elif dtype == "F32":
            yield array.array("f", [draw.uniform(-0.01, 0.01) for _ in range(count)]).tobytes()
        else:
            pool, left = self.pools[dtype], count * WIDTH[dtype]
            while left > 0:
                at = draw.randrange(len(pool) // 2) // 2 * 2
                piece = pool[at:at + min(left, len(pool) // 2)]
                left -= len(piece)
                yield piece


def tokenizer(vocabulary):
    """A byte-level BPE with DeepSeek's pre-tokenizer whose every token but the first ones is a merge."""
    document = json.loads((HERE.parent / "models/tiny-deepseek-v3/tokenizer.json").read_text())
    tokens = dict(document["model"]["vocab"])
    merges = list(document["model"]["merges"])
    letters = [token for token in tokens if len(token) == 1]
    for left, right in itertools.product(list(tokens), letters):
        if len(tokens) == vocabulary:
            break
        if left + right in tokens or left.startswith("<|"):
            continue
        tokens[left + right] = len(tokens)
        merges.append([left, right])
    document["model"].update(vocab=tokens, merges=merges)
    return json.dumps(document, ensure_ascii=False)


def write(folder, size="full", layers=2, experts=0, seed=1):
    """Writes the checkpoint and returns its bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    c = config(size, layers, experts)
    (folder / "config.json").write_text(json.dumps(c, indent=2))
    (folder / "tokenizer.json").write_text(tokenizer(c["vocab_size"] - 465))  # as many ids as DeepSeek leaves unused
    (folder / "tokenizer_config.json").write_bytes((HERE.parent / "models/tiny-deepseek-v3/tokenizer_config.json").read_bytes())
    shards, filled = [[]], 0
    for name, dtype, shape, original in tensors(c):
        count = math.prod(shape) * WIDTH[dtype]
        if shards[-1] and filled + count > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, dtype, shape, original, filled, filled + count))
        filled += count
    values, weight_map, total = Values(seed), {}, 0
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):06}.safetensors"
        header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
                             for name, dtype, shape, _, begin, end in shard}).encode()
        header += b" " * (-len(header) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for name, dtype, shape, original, begin, end in shard:
                for chunk in values.chunks(original or name, dtype, shape):
                    file.write(chunk)
                weight_map[name] = file_name
                total += end - begin
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--layers", type=int, default=2, help="the first of them dense")
    parser.add_argument("--experts", type=int, default=0, help="in a mixture (0: as the size has them)")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    print(f"{write(a.folder, a.size, a.layers, a.experts, a.seed) / 1e9:.1f} GB of tensors in {a.folder}")
