// A model as a graph of modules (design decision 2): each module is a typed value that names its weights; an executor
// walks the list in order, handing the residual stream from one to the next. A family is the page that builds this list.
//
// Weights are views into the packed file's mapping and live as long as the PackedModel that made the graph.
#pragma once
#include <variant>
#include <vector>

#include "kernels/gemm_s8.h"
#include "model/config.h"

namespace millrace::model {

// y = x W^T + bias. Exactly one of s8 (INT8 path) and f32 (checking path) is set.
struct Linear {
  int n = 0, k = 0;
  kernels::WeightsS8 s8;
  const float* f32 = nullptr;   // [n][k]
  const float* bias = nullptr;  // [n] or none
};

struct EmbedModule {  // token -> residual row
  int vocab = 0, width = 0;
  const uint16_t* bf16 = nullptr;  // [vocab][width]; exactly one of the two
  const float* f32 = nullptr;
};

struct AttentionModule {  // residual += o(attention(rope(qkv(norm(residual)))))
  int layer = 0;
  const float* norm_gain = nullptr;  // null on the INT8 path: folded into qkv
  Linear qkv;                        // rows: q heads, then k heads, then v heads
  const float* q_norm_gain = nullptr;  // Qwen3
  const float* k_norm_gain = nullptr;
  Linear o;
};

struct FfnModule {  // residual += down(hadamard(silu(gate) * up))
  int layer = 0;
  const float* norm_gain = nullptr;
  Linear gate_up;  // rows: gate, then up
  int hadamard_block = 1;
  Linear down;
};

struct HeadModule {  // residual -> logits
  const float* norm_gain = nullptr;
  Linear head;
};

using Module = std::variant<EmbedModule, AttentionModule, FfnModule, HeadModule>;

struct Graph {
  std::vector<Module> modules;
};

}  // namespace millrace::model
