"""Writes a llama GGUF's weights as float32 arrays under their Hugging Face names (q and k rows un-permuted), for
make_fixtures.py. Needs the PyPI package gguf.      usage: dequantize_gguf.py MODEL.gguf OUT.npz"""
import sys

import gguf
import numpy as np

reader = gguf.GGUFReader(sys.argv[1])
heads = {"attn_q": int(reader.fields["llama.attention.head_count"].parts[-1][0]),
         "attn_k": int(reader.fields["llama.attention.head_count_kv"].parts[-1][0])}
names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
out = {}
for tensor in reader.tensors:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    values = values.reshape([int(n) for n in reversed(tensor.shape)])
    parts = tensor.name.split(".")
    if parts[0] == "blk":
        if parts[2] in heads:
            n, width = values.shape
            values = values.reshape(heads[parts[2]], n // heads[parts[2]] // 2, 2, width).swapaxes(1, 2).reshape(n, width)
        out[f"model.layers.{parts[1]}.{names[parts[2]]}.weight"] = np.ascontiguousarray(values)
    else:
        out[f"{names[parts[0]]}.weight"] = values
np.savez(sys.argv[2], **out)
print(len(out), "tensors")
