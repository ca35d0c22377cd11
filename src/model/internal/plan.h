// A Plan: a family's graph in terms of its checkpoint's tensors, and how each linear is folded and rotated on
// the INT8 path (decoder_plan.cc says why). Plain data. Private to the room.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model/config.h"
#include "model/internal/rotation.h"

namespace millrace::model {

struct TensorName {  // one tensor, in both spellings; "" where a format has none
  std::string hugging_face, gguf;
};

// The rows of a linear's part within one tensor of the checkpoint. Plain: the whole tensor is the part.
struct TensorView {
  TensorName tensor;
  int64_t rows = 0, columns = 0;  // of the whole tensor, outer dimensions multiplied; 0: as the part
  int64_t slabs = 0;              // > 0: the tensor has three dimensions, this one first
  int64_t first = 0;              // the part's row 0
  // stride > 0: `take` rows of every `stride` rows from `first` on belong to the part, the others do not.
  int64_t take = 0, stride = 0;
  // Each run of `take` rows is the transpose of `columns` rows of the part: attention's k_up in a kv_b_proj.
  bool transposed = false;
};

// Of every `group` rows, `count` from `first` on are rotary and stored pair by pair: row first + 2 i + j of
// the file is our row first + j * count / 2 + i, so that RoPE turns halves. group 0: none.
struct PairedRows {
  int group = 0, first = 0, count = 0;
  bool gguf_only = false;  // GGUF files of the Llama family; else in both formats
};

struct PlannedPart {               // one of the matrices stacked into a linear
  std::vector<TensorView> weight;  // [rows][k]; the first that the checkpoint has
  TensorName bias;                 // [rows]; read if the linear has a bias
  int rows = 0;
  PairedRows pairs;
  TensorName row_gain;  // INT8: multiplied into the rows before they are rotated, repeating. Empty: none
  int row_gain_width = 0;
  Rotation rotate_rows;  // INT8: of the output channels, the bias with them
  int rotate_group = 0,
      rotate_count = 0;  // group > 0: of every `group` rows only the first `count` are rotated
};

// In a linear of experts, '#' in a section or a name stands for the expert's number, and a view's first row
// counts from the expert's own block of `rows / experts` rows where the tensor holds all experts (slabs > 0).
struct PlannedLinear {
  std::string section;
  std::vector<PlannedPart> parts;
  int k = 0;
  bool bias = false;
  bool always_float = false;  // float32 on the INT8 path too, folded and rotated as the others
  TensorName folded_gain;     // the norm before this linear; INT8: multiplied into the columns. Empty: none
  TensorName second_gain;   // where two normed rows are joined: of the second half, folded_gain of the first
  Rotation rotate_columns;  // INT8: how inputs arrive
  int rows_per_input = 0;   // > 0: so many rows read an input of their own, the next so many another
  bool of_one_expert = false;  // of an expert of many, which a text may hardly ever reach
  std::string also_read_by;    // with it: the router's section, which reads the rows of all experts
  int rows() const;
  std::string section_of(int expert) const;   // the section, numbered
  PlannedLinear of_expert(int expert) const;  // this expert's own linear
};

struct PlannedGain {  // a norm's weights, or another vector of floats
  std::string section;
  TensorName tensor;
  int width = 0;
  bool folded = false;  // INT8: in the next linear, not in the file
};

struct PlannedEmbed {
  std::string section;
  TensorName tensor;
  int vocab = 0, width = 0;
  Rotation rotate_columns;
};
struct PlannedAttention {
  int layer = 0;
  PlannedGain norm;
  PlannedLinear qkv;
  std::optional<PlannedGain> q_norm, k_norm;
  PlannedLinear o;
  std::optional<PlannedGain> post_norm;
};
struct PlannedMla {
  int layer = 0;
  PlannedGain norm;
  PlannedLinear in;
  std::optional<PlannedGain> q_norm;  // with q_up
  PlannedGain latent_norm;
  std::optional<PlannedLinear> q_up;
  PlannedLinear k_up, v_up, o;
  std::optional<PlannedGain> post_norm;
};
struct PlannedFfn {
  int layer = 0;
  PlannedGain norm;
  PlannedLinear gate_up, down;
  std::optional<PlannedGain> post_norm;
};
struct PlannedRouter {
  int layer = 0;
  PlannedGain norm;
  PlannedLinear weight;  // always float
  std::optional<PlannedGain> selection_bias, expert_scale, post_norm;
};
struct PlannedExperts {  // all of a layer: as many modules of the graph
  int layer = 0;
  int experts = 0;
  PlannedLinear gate_up, down;
};
struct PlannedSharedExpert {
  int layer = 0;
  PlannedLinear gate_up, down;
  std::optional<PlannedLinear> gate;  // always float, one row
};
struct PlannedHead {
  PlannedGain norm;
  PlannedLinear head;
  bool shares_matrix =
      false;  // with the embedding (tied); the float32 form stores it once
};
using PlannedModule = std::variant<PlannedEmbed, PlannedAttention, PlannedMla, PlannedFfn, PlannedRouter,
                                   PlannedExperts, PlannedSharedExpert, PlannedHead>;
struct PlannedMtp {  // see MtpModule
  int layer = 0;
  PlannedGain model_norm, embed_norm, hidden_norm;
  PlannedLinear eh;
  std::vector<PlannedModule> modules;
  PlannedGain head_norm;  // the head's matrix is the model's
};
struct Plan {
  std::vector<PlannedModule> modules;
  std::vector<PlannedMtp> mtp;
};

// Calls visit.embed(PlannedEmbed), visit.gain(PlannedGain), visit.linear(PlannedLinear),
// visit.experts(PlannedLinear, count) and visit.head(PlannedHead) for the weights of a plan in the order of
// the file: what packing, opening and checking all walk. `experts` is called for gate_up, then for down.
template <class Visitor>
struct WeightWalk {
  Visitor& visit;
  void maybe(const std::optional<PlannedGain>& g) const {
    if (g) visit.gain(*g);
  }
  void maybe(const std::optional<PlannedLinear>& l) const {
    if (l) visit.linear(*l);
  }
  void operator()(const PlannedEmbed& m) const { visit.embed(m); }
  void operator()(const PlannedAttention& m) const {
    visit.gain(m.norm);
    visit.linear(m.qkv);
    maybe(m.q_norm);
    maybe(m.k_norm);
    visit.linear(m.o);
    maybe(m.post_norm);
  }
  void operator()(const PlannedMla& m) const {
    visit.gain(m.norm);
    visit.linear(m.in);
    maybe(m.q_norm);
    visit.gain(m.latent_norm);
    maybe(m.q_up);
    visit.linear(m.k_up);
    visit.linear(m.v_up);
    visit.linear(m.o);
    maybe(m.post_norm);
  }
  void operator()(const PlannedFfn& m) const {
    visit.gain(m.norm);
    visit.linear(m.gate_up);
    visit.linear(m.down);
    maybe(m.post_norm);
  }
  void operator()(const PlannedRouter& m) const {
    visit.gain(m.norm);
    visit.linear(m.weight);
    maybe(m.selection_bias);
    maybe(m.expert_scale);
    maybe(m.post_norm);
  }
  void operator()(const PlannedExperts& m) const {
    visit.experts(m.gate_up, m.experts);
    visit.experts(m.down, m.experts);
  }
  void operator()(const PlannedSharedExpert& m) const {
    visit.linear(m.gate_up);
    visit.linear(m.down);
    maybe(m.gate);
  }
  void operator()(const PlannedHead& m) const {
    visit.gain(m.norm);
    visit.head(m);
  }
};
template <class Visitor>
void each_weight(const Plan& plan, Visitor&& visitor) {
  const WeightWalk<std::remove_reference_t<Visitor>> walk{visitor};
  for (const PlannedModule& module : plan.modules) std::visit(walk, module);
  for (const PlannedMtp& mtp : plan.mtp) {
    visitor.gain(mtp.model_norm);
    visitor.gain(mtp.embed_norm);
    visitor.gain(mtp.hidden_norm);
    visitor.linear(mtp.eh);
    for (const PlannedModule& module : mtp.modules) std::visit(walk, module);
    visitor.gain(mtp.head_norm);
  }
}

// Largest power of two that divides n, at most `limit`: the size of Hadamard blocks.
int hadamard_block_of(int n, int limit);
inline constexpr int kMaxHadamardBlock = 512;

}  // namespace millrace::model
