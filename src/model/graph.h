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
  const float* post_norm_gain = nullptr;  // sandwich norm; never folded
};

// Multi-head latent attention in its absorbed form (docs/decisions/0005-mla-form.md), H heads:
//   in(norm(residual)) -> [q latent, or q itself | kv latent | rotary key]
//   q = q_up(norm(q latent)), per head [nope | rope];   c = norm(kv latent);   rope on q's and the key's rotary parts
//   key of a token: [c | rotary key], its value: c, one "KV head" for all
//   query of head h: [k_up_h(q nope) | q rope];   u_h = attention;   residual += o([v_up_0(u_0) ... v_up_H-1(u_H-1)])
struct MlaModule {
  int layer = 0;
  const float* norm_gain = nullptr;         // null on the INT8 path, as are the two next: folded
  Linear in;                                // rows: q_lora_rank (or H * (nope + rope)), kv_lora_rank, rope_head_dim
  const float* q_norm_gain = nullptr;       // [q_lora_rank]
  const float* latent_norm_gain = nullptr;  // [kv_lora_rank]
  Linear q_up;                              // n 0 where queries come straight from the stream
  Linear k_up;                              // k nope; head h has rows [h * kv_lora_rank, (h + 1) * kv_lora_rank)
  Linear v_up;                              // k kv_lora_rank; head h has rows [h * value_head_dim, ...)
  Linear o;
  const float* post_norm_gain = nullptr;  // sandwich norm; never folded
};

// A mixture of experts is a RouterModule followed by its ExpertModules in order of number and, where the model has one, a
// SharedExpertModule:
//   x = norm(residual);   residual += sum over picked slots j ascending of weight_j * expert_j(x), then + gate * shared(x)
struct RouterModule {
  int layer = 0;
  const float* norm_gain = nullptr;       // null on the INT8 path: folded into weight and the experts
  const float* weight = nullptr;          // [experts][hidden], float32 on both paths (rotated with the stream on INT8)
  const float* selection_bias = nullptr;  // [experts] or none
  const float* expert_scale = nullptr;    // [experts] or none
  const float* post_norm_gain = nullptr;  // sandwich norm of the mixture's output; never folded
};
struct ExpertModule {
  int layer = 0, expert = 0;
  Linear gate_up;  // rows: gate, then up
  int hadamard_block = 1;
  Linear down;
};
struct SharedExpertModule {
  int layer = 0;
  Linear gate_up;
  int hadamard_block = 1;
  Linear down;
  const float* gate = nullptr;  // [hidden] or none; the output is multiplied by sigmoid(gate . x)
};

struct FfnModule {  // residual += down(hadamard(silu(gate) * up))
  int layer = 0;
  const float* norm_gain = nullptr;
  Linear gate_up;  // rows: gate, then up
  int hadamard_block = 1;
  Linear down;
  const float* post_norm_gain = nullptr;  // sandwich norm; never folded
};

struct HeadModule {  // residual -> logits
  const float* norm_gain = nullptr;
  Linear head;
};

using Module = std::variant<EmbedModule, AttentionModule, MlaModule, FfnModule, RouterModule, ExpertModule,
                            SharedExpertModule, HeadModule>;

// A multi-token prediction layer (DeepSeek-V3, section 2.2): guesses token i + 2 from the model's state at position i and
// token i + 1. It has a decoder layer of its own, with a KV cache of its own, at position i.
//   h = turn(norm(residual at i)) * model_norm_gain          the main model's final state, after its final norm
//   x = eh([norm(embed(token i + 1)) * embed_norm_gain | turn(norm(h) * hidden_norm_gain)])
//   x through modules;   logits = head(turn(turn(norm(x)) * head_norm_gain / model_norm_gain))
// turn() is the Hadamard transform of each `hadamard_block` values (nothing if 1): the stream's own rotation, undone and done
// again, since gains multiply in between. norm() without a gain. The head is the model's own; on the INT8 path it
// has model_norm_gain folded in, which the quotient takes out again (0 where that gain is under kGuessGainLeast of the
// largest), otherwise logits = head(norm(x) * head_norm_gain). To guess further, h is turn(norm(x)) * head_norm_gain and the
// guess takes the place of token i + 1.
inline constexpr float kGuessGainLeast = 1e-4f;
struct MtpModule {
  int layer = 0;  // counted on from the model's layers
  int hadamard_block = 1;
  const float* model_norm_gain = nullptr;   // [hidden]
  const float* embed_norm_gain = nullptr;   // null on the INT8 path, as is the next: folded into eh
  const float* hidden_norm_gain = nullptr;
  Linear eh;                     // k = 2 hidden: the embedding's half, then the state's
  std::vector<Module> modules;   // attention, then FFN or mixture
  const float* head_norm_gain = nullptr;  // [hidden]
  HeadModule head;                        // its norm_gain is head_norm_gain, or null on the INT8 path
};

struct Graph {
  std::vector<Module> modules;
  std::vector<MtpModule> mtp;  // in the order in which they guess; config.mtp_layers of them
};

}  // namespace millrace::model
