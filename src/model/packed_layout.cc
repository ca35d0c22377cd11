#include "model/internal/packed_layout.h"

#include <algorithm>

#include "base/hash.h"
#include "base/units.h"

namespace millrace::model {
namespace {

uint64_t aligned(uint64_t value) { return static_cast<uint64_t>(round_up(static_cast<int64_t>(value), 64)); }

PackType stored_type(const PlannedLinear& l, PackType type) {
  return l.always_float ? PackType::float32 : type;
}

struct SectionSizes {
  PackType type;
  std::vector<PlannedSection> out;

  uint64_t size_of(const PlannedLinear& l) const {
    return LinearLayout(stored_type(l, type), l.rows(), l.k, l.bias).size;
  }
  void embed(const PlannedEmbed& m) {
    const uint64_t element = type == PackType::int8 ? sizeof(uint16_t) : sizeof(float);
    out.push_back({m.section, static_cast<uint64_t>(m.vocab) * static_cast<uint64_t>(m.width) * element});
  }
  void gain(const PlannedGain& g) {
    if (!(g.folded && type == PackType::int8))
      out.push_back({g.section, static_cast<uint64_t>(g.width) * sizeof(float)});
  }
  void linear(const PlannedLinear& l) { out.push_back({l.section, size_of(l)}); }
  void experts(const PlannedLinear& l, int count) {
    for (int e = 0; e < count; ++e) out.push_back({l.section_of(e), size_of(l)});
  }
  void head(const PlannedHead& m) {
    if (!(m.shares_matrix && type == PackType::float32)) linear(m.head);
  }
};

struct SectionCount {
  PackType type;
  int64_t count = 0;

  void embed(const PlannedEmbed&) { ++count; }
  void gain(const PlannedGain& g) { count += g.folded && type == PackType::int8 ? 0 : 1; }
  void linear(const PlannedLinear&) { ++count; }
  void experts(const PlannedLinear&, int experts) { count += experts; }
  void head(const PlannedHead& m) { count += m.shares_matrix && type == PackType::float32 ? 0 : 1; }
};

struct Binder {
  PackType type;
  const std::function<const std::byte*(const std::string&)>& at;
  std::vector<Module>& out;
  const float* embedding_f32 = nullptr;
  Linear model_head = {};  // which MTP takes too

  const float* floats(const std::string& section) const {
    return reinterpret_cast<const float*>(at(section));
  }
  const float* gain(const PlannedGain& g) const {
    return g.folded && type == PackType::int8 ? nullptr : floats(g.section);
  }
  const float* gain(const std::optional<PlannedGain>& g) const { return g ? gain(*g) : nullptr; }
  Linear linear(const PlannedLinear& l, const std::string& section) const {
    Linear linear{.n = l.rows(), .k = l.k};
    const PackType stored = stored_type(l, type);
    const LinearLayout layout(stored, linear.n, linear.k, l.bias);
    const std::byte* bytes = at(section);
    if (stored == PackType::int8) {
      linear.s8 = {.tiles = reinterpret_cast<const int8_t*>(bytes),
                   .scale = reinterpret_cast<const float*>(bytes + layout.scale),
                   .sum = reinterpret_cast<const int32_t*>(bytes + layout.sum),
                   .n = linear.n,
                   .k = linear.k};
    } else {
      linear.f32 = reinterpret_cast<const float*>(bytes);
    }
    if (l.bias) linear.bias = reinterpret_cast<const float*>(bytes + layout.bias);
    return linear;
  }
  Linear linear(const PlannedLinear& l) const { return linear(l, l.section); }
  // How down_proj's inputs are rotated at run time.
  int hadamard_block(const PlannedLinear& down) const {
    return type == PackType::int8 ? down.rotate_columns.block : 1;
  }

  void operator()(const PlannedEmbed& m) {
    EmbedModule module{.vocab = m.vocab, .width = m.width};
    if (type == PackType::int8) {
      module.bf16 = reinterpret_cast<const uint16_t*>(at(m.section));
    } else {
      module.f32 = embedding_f32 = floats(m.section);
    }
    out.push_back(module);
  }
  void operator()(const PlannedAttention& m) const {
    out.push_back(AttentionModule{.layer = m.layer,
                                  .norm_gain = gain(m.norm),
                                  .qkv = linear(m.qkv),
                                  .q_norm_gain = gain(m.q_norm),
                                  .k_norm_gain = gain(m.k_norm),
                                  .o = linear(m.o),
                                  .post_norm_gain = gain(m.post_norm)});
  }
  void operator()(const PlannedMla& m) const {
    out.push_back(MlaModule{.layer = m.layer,
                            .norm_gain = gain(m.norm),
                            .in = linear(m.in),
                            .q_norm_gain = gain(m.q_norm),
                            .latent_norm_gain = gain(m.latent_norm),
                            .q_up = m.q_up ? linear(*m.q_up) : Linear{},
                            .k_up = linear(m.k_up),
                            .v_up = linear(m.v_up),
                            .o = linear(m.o),
                            .post_norm_gain = gain(m.post_norm)});
  }
  void operator()(const PlannedFfn& m) const {
    out.push_back(FfnModule{.layer = m.layer,
                            .norm_gain = gain(m.norm),
                            .gate_up = linear(m.gate_up),
                            .hadamard_block = hadamard_block(m.down),
                            .down = linear(m.down),
                            .post_norm_gain = gain(m.post_norm)});
  }
  void operator()(const PlannedRouter& m) const {
    out.push_back(RouterModule{.layer = m.layer,
                               .norm_gain = gain(m.norm),
                               .weight = floats(m.weight.section),
                               .selection_bias = gain(m.selection_bias),
                               .expert_scale = gain(m.expert_scale),
                               .post_norm_gain = gain(m.post_norm)});
  }
  void operator()(const PlannedExperts& m) const {
    out.reserve(out.size() + static_cast<size_t>(m.experts) + 4);
    for (int e = 0; e < m.experts; ++e)
      out.push_back(ExpertModule{.layer = m.layer,
                                 .expert = e,
                                 .gate_up = linear(m.gate_up, m.gate_up.section_of(e)),
                                 .hadamard_block = hadamard_block(m.down),
                                 .down = linear(m.down, m.down.section_of(e))});
  }
  void operator()(const PlannedSharedExpert& m) const {
    out.push_back(SharedExpertModule{.layer = m.layer,
                                     .gate_up = linear(m.gate_up),
                                     .hadamard_block = hadamard_block(m.down),
                                     .down = linear(m.down),
                                     .gate = m.gate ? floats(m.gate->section) : nullptr});
  }
  void operator()(const PlannedHead& m) {
    const bool share = m.shares_matrix && type == PackType::float32;
    model_head = share ? Linear{.n = m.head.rows(), .k = m.head.k, .f32 = embedding_f32} : linear(m.head);
    out.push_back(HeadModule{.norm_gain = gain(m.norm), .head = model_head});
  }
  MtpModule mtp(const PlannedMtp& m) {
    MtpModule module{
        .layer = m.layer,
        .hadamard_block = type == PackType::int8 ? m.eh.rotate_columns.block : 1,
        .model_norm_gain = gain(m.model_norm),
        .embed_norm_gain = gain(m.embed_norm),
        .hidden_norm_gain = gain(m.hidden_norm),
        .eh = linear(m.eh),
        .head_norm_gain = gain(m.head_norm),
        .head = {.norm_gain = type == PackType::int8 ? nullptr : gain(m.head_norm), .head = model_head}};
    Binder inner{.type = type, .at = at, .out = module.modules};
    for (const PlannedModule& planned : m.modules) std::visit(inner, planned);
    return module;
  }
};

}  // namespace

LinearLayout::LinearLayout(PackType type, int64_t n, int64_t k, bool has_bias) {
  if (type == PackType::int8) {
    const auto channels = static_cast<uint64_t>(kernels::padded_n(n));
    scale = aligned(kernels::weights_s8_tile_bytes(n, k));
    sum = aligned(scale + channels * sizeof(float));
    bias = aligned(sum + channels * sizeof(int32_t));
  } else {
    bias = aligned(static_cast<uint64_t>(n) * static_cast<uint64_t>(k) * sizeof(float));
  }
  size = has_bias ? aligned(bias + static_cast<uint64_t>(n) * sizeof(float)) : bias;
}

std::vector<PlannedSection> planned_sections(const Plan& plan, PackType type) {
  SectionSizes sizes{.type = type, .out = {}};
  each_weight(plan, sizes);
  return std::move(sizes.out);
}

int64_t planned_section_count(const Plan& plan, PackType type) {
  SectionCount sections{.type = type};
  each_weight(plan, sections);
  return sections.count;
}

Graph bind_graph(const Plan& plan, PackType type,
                 const std::function<const std::byte*(const std::string&)>& at) {
  Graph graph;
  Binder binder{.type = type, .at = at, .out = graph.modules};
  for (const PlannedModule& module : plan.modules) std::visit(binder, module);
  for (const PlannedMtp& mtp : plan.mtp) graph.mtp.push_back(binder.mtp(mtp));
  return graph;
}

uint64_t section_checksum(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (size_t at = 0; at < bytes.size(); at += kChecksumPiece)
    sum = hash64(bytes.subspan(at, std::min(kChecksumPiece, bytes.size() - at)), sum);
  return sum;
}

}  // namespace millrace::model
