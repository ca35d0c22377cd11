"""Fixtures of the families with latent attention, experts and multi-token prediction; called by make_fixtures.py.

A fixture holds no weights. weights.json names each tensor (transformers' names and shapes, as save_pretrained wrote
them where transformers has the family) with the centre and spread of its values; value j of tensor i is
    centre + spread * (2 uniform_at(seed, j, i) - 1)        (src/base/random.h), rounded to float, then to the dtype,
so that the tests make the same checkpoint; its checksum is in the file, and GGUF's name of the family. What else is there:
    config.json           as transformers 5 wrote it, or as the publisher's checkpoint spells it
    tokens.i32            one sequence;  logits.f32 its logits at meta's positions, by transformers in float32;
    reference.f32         the same by reference_model.py in float64
    experts.u8            [MoE layer][token][k] chosen experts, best first;  margins.f32 [MoE layer][token]: by how much
    mtp_logits.f32        DeepSeek V3: rows of the MTP layer at meta's mtp_positions
    meta.json             greedy continuations and drafts too, with the margins of their logits; what INT8 may cost

transformers 5.12.1 is wrong about DeepSeek V2 in two places, which are put right here: its attention leaves out
YaRN's mscale_all_dim^2, and group_limited_greedy stops at a missing attribute. Pangu Pro MoE, Pangu Ultra MoE and the
MTP layer are not in transformers: reference_model.py alone speaks for them, and is itself held against transformers on
every other family.

A seed is taken only if every choice of experts and every greedy token of the fixture is decided by more than
MIN_MARGIN and MIN_TOKEN_MARGIN; so tests need no excuse for near ties. And each mutation of a case (a known way to get
the family wrong) must move some logit by MIN_MOVE of the largest, far above what tests tolerate.
"""
import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import transformers

from reference_model import Moe, ReferenceModel, Spec, Yarn

VOCAB, TOKENS = 288, 300  # more than one attention chunk of 256
POSITIONS = [0, 1, 2, 31, 32, 63, 64, 65, 127, 255, 256, 298, 299]
PROMPTS = [5, 33, 90]  # lengths of the greedy prompts; 16 tokens follow each
GREEDY = 16
MTP_POSITIONS = [0, 1, 31, 64, 127, 256, 297]
MIN_MARGIN, MIN_TOKEN_MARGIN, MIN_MOVE = 2e-4, 1e-2, 2e-3

COMMON = dict(vocab_size=VOCAB, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)
MLA = dict(num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32)
MLA_SPEC = dict(heads=4, latent=64, nope=32, rope=16, value=32)
MOE_MUTATIONS = ["no_scale", "no_shared"]
MLA_MUTATIONS = ["rope_halves", "no_yarn", "no_mscale"]


CASES = {}


def family(int8_kl, gguf=""):
    """Registers a case by its function's name. int8_kl: what INT8 may cost at most, in nats of mean KL; twice what
    families_slow_test prints, or a little more. gguf: GGUF's general.architecture, where the family has files."""
    def register(build):
        CASES[build.__name__] = lambda: dict(build(), int8_kl=int8_kl, gguf=gguf)
        return build
    return register


def yarn(factor, scale, original=64, **more):
    return dict(type="yarn", factor=factor, original_max_position_embeddings=original, mscale=scale, mscale_all_dim=scale, **more)


def spec_yarn(scaling):
    return Yarn(scaling["factor"], scaling["original_max_position_embeddings"], scaling.get("beta_fast", 32),
                scaling.get("beta_slow", 1), scaling["mscale"], scaling["mscale_all_dim"])


def rope_parameters(theta, scaling):
    rest = {key: value for key, value in scaling.items() if key != "type"}
    return dict(rope_type=scaling["type"], rope_theta=theta, **rest)


@family(int8_kl=0.12, gguf="deepseek2")
def deepseek_v3():
    scaling = yarn(40.0, 1.0)
    options = dict(COMMON, **MLA, hidden_size=96, intermediate_size=160, num_hidden_layers=3, q_lora_rank=48,
                   n_routed_experts=16, num_experts_per_tok=4, n_shared_experts=1, moe_intermediate_size=32, n_group=4,
                   topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5, first_k_dense_replace=1, rms_norm_eps=1e-6,
                   rope_parameters=rope_parameters(10000.0, scaling))
    moe = Moe(16, 4, [1, 2], "sigmoid", 4, 2, "top2", normalise=True, scale=2.5, shared="shared_experts")
    spec = Spec(layers=3, eps=1e-6, theta=10000.0, q_latent=48, yarn=spec_yarn(scaling), moe=moe, mtp=True, **MLA_SPEC)
    mutations = MLA_MUTATIONS + MOE_MUTATIONS + ["no_selection_bias", "biased_weights", "no_groups", "masked_with_zero",
                                                 "other_group_score", "other_normalise"]
    return dict(config=transformers.DeepseekV3Config(**options), spec=spec, mutations=mutations,
                extra=dict(num_nextn_predict_layers=1, scoring_func="sigmoid", topk_method="noaux_tc"))


@family(int8_kl=0.04, gguf="deepseek2")
def kimi_k2():
    scaling = yarn(32.0, 1.0, beta_fast=1.0, beta_slow=1.0)
    options = dict(COMMON, **MLA, hidden_size=64, intermediate_size=96, num_hidden_layers=2, q_lora_rank=None,
                   n_routed_experts=12, num_experts_per_tok=4, n_shared_experts=1, moe_intermediate_size=32, n_group=1,
                   topk_group=1, norm_topk_prob=True, routed_scaling_factor=2.827, first_k_dense_replace=1,
                   rms_norm_eps=1e-6)
    moe = Moe(12, 4, [1], "sigmoid", normalise=True, scale=2.827, shared="shared_experts")
    spec = Spec(layers=2, eps=1e-6, theta=50000.0, yarn=spec_yarn(scaling), moe=moe, **MLA_SPEC)
    file = dict(options, architectures=["DeepseekV3ForCausalLM"], model_type="kimi_k2", rope_theta=50000.0,
                rope_scaling=scaling, hidden_act="silu", scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1,
                num_nextn_predict_layers=0, attention_bias=False, ep_size=1, aux_loss_alpha=0.001, seq_aux=True,
                torch_dtype="bfloat16", transformers_version="4.48.3")
    return dict(config=transformers.DeepseekV3Config(**options, rope_parameters=rope_parameters(50000.0, scaling)),
                spec=spec, mutations=MLA_MUTATIONS + MOE_MUTATIONS + ["no_selection_bias", "biased_weights"], file=file)


@family(int8_kl=0.01, gguf="deepseek2")
def deepseek_v2_lite():
    scaling = yarn(40.0, 0.707, beta_fast=32, beta_slow=1)
    options = dict(COMMON, **MLA, hidden_size=64, intermediate_size=96, num_hidden_layers=3, q_lora_rank=None,
                   n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2, moe_intermediate_size=24, n_group=1,
                   topk_group=1, topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
                   first_k_dense_replace=1, rms_norm_eps=1e-6)
    moe = Moe(8, 3, [1, 2], shared="shared_experts")
    spec = Spec(layers=3, eps=1e-6, theta=10000.0, yarn=spec_yarn(scaling), moe=moe, **MLA_SPEC)
    file = dict(options, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", rope_theta=10000,
                rope_scaling=scaling, hidden_act="silu", scoring_func="softmax", moe_layer_freq=1, attention_bias=False,
                aux_loss_alpha=0.001, seq_aux=True, pretraining_tp=1, torch_dtype="bfloat16", transformers_version="4.33.1")
    return dict(config=transformers.DeepseekV2Config(**options, rope_parameters=rope_parameters(10000.0, scaling)),
                spec=spec, mutations=MLA_MUTATIONS + ["no_shared", "other_normalise"], file=file)


@family(int8_kl=0.1, gguf="deepseek2")
def deepseek_v2():
    scaling = yarn(40.0, 0.707)
    options = dict(COMMON, **dict(MLA, v_head_dim=16, kv_lora_rank=32, qk_rope_head_dim=32), hidden_size=96,
                   intermediate_size=160, num_hidden_layers=3, q_lora_rank=48, n_routed_experts=16, num_experts_per_tok=3,
                   n_shared_experts=2, moe_intermediate_size=32, n_group=4, topk_group=2, topk_method="group_limited_greedy",
                   norm_topk_prob=False, routed_scaling_factor=4.0, first_k_dense_replace=1, rms_norm_eps=1e-6,
                   rope_parameters=rope_parameters(10000.0, scaling))
    moe = Moe(16, 3, [1, 2], "softmax", 4, 2, "max", scale=4.0, shared="shared_experts")
    spec = Spec(layers=3, eps=1e-6, theta=10000.0, q_latent=48, yarn=spec_yarn(scaling), moe=moe,
                **dict(MLA_SPEC, latent=32, rope=32, value=16))
    return dict(config=transformers.DeepseekV2Config(**options), spec=spec, extra=dict(scoring_func="softmax"),
                mutations=MLA_MUTATIONS + MOE_MUTATIONS + ["no_groups", "other_group_score", "other_normalise"])


@family(int8_kl=0.01, gguf="qwen2moe")
def qwen2_moe():
    options = dict(COMMON, hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=2,
                   num_key_value_heads=1, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32,
                   shared_expert_intermediate_size=48, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[3],
                   rms_norm_eps=1e-6, rope_parameters=dict(rope_type="default", rope_theta=1000000.0))
    moe = Moe(8, 3, [1, 5], shared="shared_expert", shared_gate=True)
    spec = Spec(layers=6, heads=2, kv_heads=1, head_dim=32, eps=1e-6, theta=1e6, moe=moe)
    return dict(config=transformers.Qwen2MoeConfig(**options), spec=spec,
                mutations=["no_bias", "rope_pairs", "no_shared", "no_shared_gate", "other_normalise"])


@family(int8_kl=0.006, gguf="qwen3moe")
def qwen3_moe():
    options = dict(COMMON, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=32, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=32,
                   norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], rms_norm_eps=1e-6,
                   rope_parameters=dict(rope_type="default", rope_theta=1000000.0))
    moe = Moe(16, 4, [0, 1, 2], normalise=True)
    spec = Spec(layers=3, heads=4, kv_heads=2, head_dim=32, eps=1e-6, theta=1e6, moe=moe, qk_norm=True)
    return dict(config=transformers.Qwen3MoeConfig(**options), spec=spec,
                mutations=["rope_pairs", "no_qk_norm", "other_normalise"])


@family(int8_kl=0.002, gguf="pangu-embedded")
def pangu_embedded():
    options = dict(COMMON, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                   num_key_value_heads=1, rms_norm_eps=1e-5)
    spec = Spec(layers=2, heads=2, kv_heads=1, head_dim=32, eps=1e-5, theta=4e6, tied=True)
    file = dict(options, tie_word_embeddings=True, architectures=["PanguEmbeddedForCausalLM"], model_type="PanguEmbedded",
                bias=True, hidden_act="silu", attention_dropout=0.0, pad_token_id=0, rope_theta=4000000.0,
                torch_dtype="bfloat16", transformers_version="4.53.2", use_cache=True)
    config = transformers.LlamaConfig(**dict(options, tie_word_embeddings=True), attention_bias=True,
                                      rope_parameters=dict(rope_type="default", rope_theta=4e6))
    return dict(config=config, spec=spec, file=file, mutations=["no_bias", "rope_pairs"])


def ffn_names(prefix, width, hidden):
    return {prefix + "gate_proj.weight": [width, hidden], prefix + "up_proj.weight": [width, hidden],
            prefix + "down_proj.weight": [hidden, width]}


@family(int8_kl=0.005)
def pangu_moe():
    hidden, experts, width, shared = 64, 16, 16, 48
    names = {"model.embed_tokens.weight": [VOCAB, hidden], "lm_head.weight": [VOCAB, hidden], "model.norm.weight": [hidden]}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            names[f"{prefix}{norm}.weight"] = [hidden]
        for part, rows in dict(q=64, k=32, v=32, o=hidden).items():
            names[f"{prefix}self_attn.{part}_proj.weight"] = [rows, 64]
            names[f"{prefix}self_attn.{part}_proj.bias"] = [rows]
        names[f"{prefix}mlp.gate.weight"] = [experts, hidden]
        names[f"{prefix}mlp.router_scale"] = [1, experts]
        for expert in range(experts):
            names |= ffn_names(f"{prefix}mlp.experts.{expert}.", width, hidden)
        names |= ffn_names(f"{prefix}mlp.shared_expert.", shared, hidden)
    file = dict(COMMON, architectures=["PanguProMoEForCausalLM"], model_type="PanguProMoE", hidden_size=hidden,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_act="silu", rms_norm_eps=1e-5,
                rope_theta=16000000.0, moe_intermediate_size=width, shared_expert_intermediate_size=shared,
                num_experts_per_tok=4, num_experts=experts, output_router_logits=False, router_aux_loss_coef=0.001,
                torch_dtype="bfloat16", transformers_version="4.48.2", use_cache=True)
    moe = Moe(experts, 4, [0, 1], groups=4, one_per_group=True, shared="shared_expert")
    spec = Spec(layers=2, heads=2, kv_heads=1, head_dim=32, eps=1e-5, theta=16e6, moe=moe)
    # The number of groups is the number of experts a token takes: one in each.
    return dict(names=names, spec=spec, file=file, mutations=["no_bias", "rope_pairs", "no_expert_scale", "other_normalise", "no_shared"])


@family(int8_kl=0.05)
def pangu_ultra():
    hidden, experts, width = 96, 16, 32
    names = {"model.embed_tokens.weight": [VOCAB, hidden], "lm_head.weight": [VOCAB, hidden], "model.norm.weight": [hidden]}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"):
            names[f"{prefix}{norm}.weight"] = [hidden]
        attention = f"{prefix}self_attn."
        names |= {attention + "q_a_proj.weight": [48, hidden], attention + "q_a_layernorm.weight": [48],
                  attention + "q_b_proj.weight": [4 * 48, 48], attention + "kv_a_proj_with_mqa.weight": [64 + 16, hidden],
                  attention + "kv_a_layernorm.weight": [64], attention + "kv_b_proj.weight": [4 * 64, 64],
                  attention + "o_proj.weight": [hidden, 4 * 32]}
        if layer == 0:
            names |= ffn_names(prefix + "mlp.", 160, hidden)
            continue
        names[f"{prefix}mlp.gate.weight"] = [experts, hidden]
        for expert in range(experts):
            names |= ffn_names(f"{prefix}mlp.experts.{expert}.", width, hidden)
        names |= ffn_names(f"{prefix}mlp.shared_experts.", width, hidden)
    file = dict(COMMON, architectures=["PanguUltraMoEForCausalLM"], model_type="pangu_ultra_moe", hidden_size=hidden,
                intermediate_size=160, moe_intermediate_size=width, num_hidden_layers=3, num_mtp_layers=0,
                num_attention_heads=4, num_key_value_heads=4, num_shared_experts=1, num_routed_experts=experts,
                routed_scaling_factor=2.5, attention_kv_lora_dim=64, attention_q_lora_dim=48, attention_qk_rope_dim=16,
                attention_v_dim=32, attention_qk_dim=32, num_experts_per_tok=4, num_dense_layers=1, norm_topk_prob=True,
                hidden_act="silu", rms_norm_eps=1e-5, rope_theta=25600000.0, sandwich_norm=True, attention_dropout=0.0,
                torch_dtype="bfloat16", transformers_version="4.48.2", use_cache=True)
    moe = Moe(experts, 4, [1, 2], "sigmoid", normalise=True, scale=2.5, shared="shared_experts")
    # Where vendor and vLLM differ about the latent norms' eps (1e-6 by the class's default, 1e-5 of the config), 1e-5.
    spec = Spec(layers=3, eps=1e-5, theta=25.6e6, q_latent=48, moe=moe, sandwich=True, latent_eps=1e-5, **MLA_SPEC)
    return dict(names=names, spec=spec, file=file, mutations=["rope_halves", "no_sandwich", "other_normalise"] + MOE_MUTATIONS)


def uniform(seed, count, stream):
    """millrace::uniform_at(seed, 0..count-1, stream): Philox4x32-10."""
    mask = np.uint64(0xFFFFFFFF)
    index = np.arange(count, dtype=np.uint64)
    c = [index & mask, index >> np.uint64(32), np.full(count, stream, np.uint64), np.zeros(count, np.uint64)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(key[0]), p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(key[1]), p0 & mask]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return ((c[0] << np.uint64(32) | c[1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def rule(name, shape):
    """Centre and spread. Gains lie around 1, biases are set, linears keep the size of what they are given, queries and
    routers are sharper, and most of DeepSeek's selection biases make a score negative."""
    k = shape[-1]
    if name.endswith("norm.weight"):
        return 1.0, 0.5
    if name.endswith("e_score_correction_bias"):
        return -0.6, 0.4
    if name.endswith("router_scale"):
        return 1.0, 0.5
    if name.endswith(".bias"):
        return 0.0, 0.5
    deviation = 1 / k**0.5
    if "embed_tokens" in name:
        deviation = 1.0
    elif name.endswith(("mlp.gate.weight", "shared_expert_gate.weight", "lm_head.weight")):
        deviation *= 2
    elif any(part in name for part in ("q_proj", "q_b_proj", "k_proj", "kv_a_proj", "down_proj")):
        deviation *= 1.5
    return 0.0, round(deviation * 3**0.5, 6)


def draw(seed, table):
    """(tensors in their dtype, checksum): sum over tensors of sum_j (j + 1) bits_j, modulo 2^64."""
    tensors, checksum = {}, np.uint64(0)
    for stream, (name, shape, centre, spread, dtype) in enumerate(table):
        count = int(np.prod(shape))
        values = (centre + spread * (2 * uniform(seed, count, stream) - 1)).astype(np.float32)
        tensor = torch.from_numpy(values).to(torch.bfloat16 if dtype == "BF16" else torch.float32).view(shape)
        bits = tensor.view(torch.uint16 if dtype == "BF16" else torch.uint32).numpy().reshape(-1).astype(np.uint64)
        with np.errstate(over="ignore"):
            checksum = checksum + (bits * (np.arange(count, dtype=np.uint64) + np.uint64(1))).sum(dtype=np.uint64)
        tensors[name] = tensor.contiguous()
    return tensors, int(checksum)


def tensor_table(case):
    """[name, shape, centre, spread, dtype] in the order of names."""
    if "names" in case:
        shapes = case["names"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            transformers.AutoModelForCausalLM.from_config(case["config"], dtype=torch.float32).save_pretrained(folder)
            case["saved_config"] = json.loads((Path(folder) / "config.json").read_text())
            with safetensors.safe_open(Path(folder) / "model.safetensors", "pt") as file:
                shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    spec = case["spec"]
    if spec.mtp:  # one more layer like the last, and what joins it to the model
        last, extra = f"model.layers.{spec.layers - 1}.", f"model.layers.{spec.layers}."
        hidden = shapes["model.norm.weight"][0]
        shapes |= {name.replace(last, extra): shape for name, shape in shapes.items() if name.startswith(last)}
        shapes |= {extra + "enorm.weight": [hidden], extra + "hnorm.weight": [hidden],
                   extra + "shared_head.norm.weight": [hidden], extra + "eh_proj.weight": [hidden, 2 * hidden]}
    return [[name, shapes[name], *rule(name, shapes[name]), "F32" if name.endswith("e_score_correction_bias") else "BF16"]
            for name in sorted(shapes)]


def by_transformers(case, tensors):
    """The model with these weights in float32, put right where 5.12.1 is wrong."""
    spec = case["spec"]
    main = {name: value for name, value in tensors.items() if not name.startswith(f"model.layers.{spec.layers}.")}
    with tempfile.TemporaryDirectory() as folder:
        case["config"].save_pretrained(folder)
        safetensors.torch.save_file(main, Path(folder) / "model.safetensors", metadata=dict(format="pt"))
        loader = getattr(transformers, type(case["config"]).__name__.replace("Config", "ForCausalLM"))
        model, info = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    if isinstance(case["config"], transformers.DeepseekV2Config):
        for layer in model.model.layers:
            layer.self_attn.scaling *= spec.yarn.amplitude(spec.yarn.factor, spec.yarn.mscale_all_dim) ** 2
            layer.mlp.num_experts = case["config"].n_routed_experts
    return model.eval()


def top2(row):
    best = row.topk(2)
    return int(best.indices[0]), float(best.values[0] - best.values[1])


def greedy(model, tokens):
    """Continuations of the sequence's first tokens; each: prompt length, tokens, least margin."""
    out = []
    for length in PROMPTS:
        sequence, least = list(tokens[:length]), float("inf")
        for _ in range(GREEDY):
            token, margin = top2(model.forward(sequence).logits[-1])
            sequence.append(token)
            least = min(least, margin)
        out.append(dict(prompt=length, tokens=sequence[length:], margin=round(least, 6)))
    return out


def drafts(model, tokens, main):
    """At each of MTP_POSITIONS two drafts deep: the second by the same layer, fed its own hidden state."""
    first = model.mtp(tokens[1:], main.hidden[:-1])
    out = []
    for position in MTP_POSITIONS:
        one, margin = top2(first.logits[position])
        chained = model.mtp(tokens[1:position + 2] + [one], torch.cat([main.hidden[:position + 1], first.hidden[position:position + 1]]))
        two, margin_two = top2(chained.logits[-1])
        out.append(dict(position=position, tokens=[one, two], margin=round(min(margin, margin_two), 6)))
    return first, out


def sequence_of(seed):
    return torch.randint(2, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()


def try_seed(case, table, seed):
    """None where something is decided too narrowly."""
    tensors, checksum = draw(seed, table)
    model = ReferenceModel(case["spec"], tensors)
    tokens = sequence_of(seed)
    main = model.forward(tokens)
    margins = [float(m.min()) for m in main.margins]
    if margins and min(margins) < MIN_MARGIN:
        return None
    continued = greedy(model, tokens)
    if min(one["margin"] for one in continued) < MIN_TOKEN_MARGIN:
        return None
    first, drafted = drafts(model, tokens, main) if case["spec"].mtp else (None, [])
    if drafted and min(min(one["margin"] for one in drafted), *[float(m.min()) * 50 for m in first.margins]) < MIN_TOKEN_MARGIN:
        return None
    return dict(seed=seed, tensors=tensors, checksum=checksum, model=model, tokens=tokens, main=main, greedy=continued,
                mtp=first, drafts=drafted)


def check_mutations(case, found):
    main, scale = found["main"].logits, float(found["main"].logits.abs().max())
    for mutation in case["mutations"]:
        moved = float((found["model"].mutated(mutation).forward(found["tokens"]).logits - main)[POSITIONS].abs().max())
        print(f"    {mutation}: moves a logit by {moved / scale:.3f} of the largest")
        assert moved > MIN_MOVE * scale, mutation
    if case["spec"].mtp:
        hidden = found["main"].hidden[:-1]
        moved = float((found["model"].mutated("mtp_order").mtp(found["tokens"][1:], hidden).logits - found["mtp"].logits).abs().max())
        assert moved > MIN_MOVE * scale, "mtp_order"


def against_transformers(case, found):
    """Logits by transformers, once they have been held against the reference."""
    model = by_transformers(case, found["tensors"])
    with torch.no_grad():
        logits = model(torch.tensor([found["tokens"]])).logits[0]
        off = float((logits - found["main"].logits).abs().max())
        for one in found["greedy"]:
            sequence = found["tokens"][:one["prompt"]] + one["tokens"]
            chosen = model(torch.tensor([sequence])).logits[0].argmax(-1)[one["prompt"] - 1:-1].tolist()
            assert chosen == one["tokens"], (chosen, one)
    largest = float(logits.abs().max())
    print(f"    transformers differs from the reference by {off:.2g} at most; largest logit {largest:.3f}")
    assert off < 1e-4 * largest
    return logits, off


def write(folder, case, table, found):
    folder.mkdir(parents=True, exist_ok=True)
    main, meta = found["main"], {}
    if "names" not in case:
        logits, meta["transformers_off"] = against_transformers(case, found)
        logits[POSITIONS].numpy().astype("<f4").tofile(folder / "logits.f32")
    config = case.get("file") or dict(case["saved_config"], dtype="bfloat16", **case.get("extra", {}))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    rows = ",\n".join(" " + json.dumps(row) for row in table)
    gguf = f' "gguf_architecture": "{case["gguf"]}",' if case["gguf"] else ""
    (folder / "weights.json").write_text(f'{{"seed": {found["seed"]}, "checksum": "{found["checksum"]}",{gguf} "tensors": [\n{rows}\n]}}\n')
    np.array(found["tokens"], "<i4").tofile(folder / "tokens.i32")
    main.logits[POSITIONS].numpy().astype("<f4").tofile(folder / "reference.f32")
    if main.picks:
        torch.stack(main.picks).numpy().astype("u1").tofile(folder / "experts.u8")
        torch.stack(main.margins).numpy().astype("<f4").tofile(folder / "margins.f32")
        moe = case["spec"].moe
        meta |= dict(moe_layers=moe.layers, experts_per_token=main.picks[0].shape[1], router_max=main.router_max,
                     margin=min(float(m.min()) for m in main.margins), score=moe.score)
    if found["mtp"] is not None:
        found["mtp"].logits[MTP_POSITIONS].numpy().astype("<f4").tofile(folder / "mtp_logits.f32")
        meta |= dict(mtp_positions=MTP_POSITIONS, drafts=found["drafts"])
    meta = dict(int8_kl=case["int8_kl"], vocab=VOCAB, positions=POSITIONS, greedy=found["greedy"], torch=torch.__version__,
                transformers=transformers.__version__, **meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def tokenizer(path):
    """Two special tokens, the 256 bytes and 30 merges: VOCAB tokens, all of them used."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    vocab = {"<|bos|>": 0, "<|eos|>": 1}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[character] = len(vocab)
    merges = [(a, b) for a in "abcde" for b in "klmnop"]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    assert len(vocab) == VOCAB
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|bos|>", "<|eos|>"])
    made.save(str(path))


def make_families(out, only=None):
    out.mkdir(parents=True, exist_ok=True)
    tokenizer(out / "tokenizer.json")
    for name, build in CASES.items():
        if only and name not in only:
            continue
        case = build()
        table = tensor_table(case)
        with torch.no_grad():
            found = next(filter(None, (try_seed(case, table, seed) for seed in range(1, 400))))
            print(f"{name}: seed {found['seed']}, {sum(int(np.prod(row[1])) for row in table):,} values, largest router logit "
                  f"{found['main'].router_max:.2f}, least margin {min([float(m.min()) for m in found['main'].margins] or [0]):.2g}")
            check_mutations(case, found)
            write(out / name, case, table, found)
