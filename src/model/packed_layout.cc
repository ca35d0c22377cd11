#include "model/internal/packed_layout.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "base/hash.h"
#include "base/json.h"
#include "base/units.h"
#include "model/internal/json_fields.h"

namespace millrace::model {
namespace {

constexpr JsonLimits kDirectoryLimits{.max_bytes = kMaxDirectoryBytes, .max_depth = 8};

uint64_t aligned(uint64_t value) { return static_cast<uint64_t>(round_up(static_cast<int64_t>(value), 64)); }

// Numbers whose every bit matters travel as text: Boost.JSON may read a double one unit in the last place
// off.
json::string exact(double value) { return json::string(fmt::format("{}", value)); }
json::string hex(uint64_t value) { return json::string(fmt::format("{:016x}", value)); }

Expected<double> read_exact(const json::object& object, std::string_view key) {
  const std::string text = MR_TRY(read_text(object, key));
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    return fail(Code::data_loss, fmt::format("\"{}\" is \"{}\", not a number", key, text.substr(0, 40)));
  return value;
}

Expected<uint64_t> read_hex(const json::object& object, std::string_view key) {
  const std::string text = MR_TRY(read_text(object, key));
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size())
    return fail(Code::data_loss, fmt::format("\"{}\" is \"{}\", not 16 hex digits", key, text.substr(0, 40)));
  return value;
}

json::object config_to_json(const ModelConfig& c) {
  json::object rope{{"kind", std::to_underlying(c.rope.kind)},
                    {"theta", exact(c.rope.theta)},
                    {"factor", exact(c.rope.factor)},
                    {"low_freq_factor", exact(c.rope.low_freq_factor)},
                    {"high_freq_factor", exact(c.rope.high_freq_factor)},
                    {"beta_fast", exact(c.rope.beta_fast)},
                    {"beta_slow", exact(c.rope.beta_slow)},
                    {"attention_factor", exact(c.rope.attention_factor)},
                    {"original_max_position", c.rope.original_max_position}};
  json::array divisors;
  for (const float divisor : c.rope.frequency_divisors)
    divisors.push_back(double{divisor});  // floats survive an ulp of a double
  rope["frequency_divisors"] = std::move(divisors);
  json::array eos(c.eos.begin(), c.eos.end());
  json::object generation{{"temperature", exact(c.generation.temperature)},
                          {"top_p", exact(c.generation.top_p)},
                          {"min_p", exact(c.generation.min_p)},
                          {"repetition_penalty", exact(c.generation.repetition_penalty)},
                          {"top_k", c.generation.top_k}};
  return {{"architecture", architecture_name(c.architecture)},
          {"name", c.name},
          {"vocab_size", c.vocab_size},
          {"hidden_size", c.hidden_size},
          {"layers", c.layers},
          {"q_heads", c.q_heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"ffn_size", c.ffn_size},
          {"rms_norm_eps", exact(double{c.rms_norm_eps})},
          {"rope", std::move(rope)},
          {"tied_embeddings", c.tied_embeddings},
          {"qkv_bias", c.qkv_bias},
          {"o_bias", c.o_bias},
          {"mlp_bias", c.mlp_bias},
          {"qk_norm", c.qk_norm},
          {"max_position", c.max_position},
          {"bos", c.bos},
          {"eos", std::move(eos)},
          {"generation", std::move(generation)}};
}

Expected<const json::object*> read_object(const json::object& object, std::string_view key) {
  const json::value* value = field_of(object, key);
  if (value == nullptr || !value->is_object())
    return fail(Code::data_loss, fmt::format("\"{}\" is missing or not an object", key));
  return &value->get_object();
}
Expected<const json::array*> read_array(const json::object& object, std::string_view key, size_t max_size) {
  const json::value* value = field_of(object, key);
  if (value == nullptr || !value->is_array() || value->get_array().size() > max_size)
    return fail(Code::data_loss,
                fmt::format("\"{}\" is missing or not an array of at most {}", key, max_size));
  return &value->get_array();
}

Expected<RopeConfig> rope_from_json(const json::object& object) {
  RopeConfig rope;
  const int kind = MR_TRY(read_size(object, "kind"));
  if (kind > static_cast<int>(RopeConfig::Kind::yarn))
    return fail(Code::data_loss, fmt::format("rope kind {} is not known", kind));
  rope.kind = static_cast<RopeConfig::Kind>(kind);
  rope.theta = MR_TRY(read_exact(object, "theta"));
  rope.factor = MR_TRY(read_exact(object, "factor"));
  rope.low_freq_factor = MR_TRY(read_exact(object, "low_freq_factor"));
  rope.high_freq_factor = MR_TRY(read_exact(object, "high_freq_factor"));
  rope.beta_fast = MR_TRY(read_exact(object, "beta_fast"));
  rope.beta_slow = MR_TRY(read_exact(object, "beta_slow"));
  rope.attention_factor = MR_TRY(read_exact(object, "attention_factor"));
  rope.original_max_position = MR_TRY(read_integer(object, "original_max_position"));
  for (const json::value& divisor : *MR_TRY(read_array(object, "frequency_divisors", 1024))) {
    if (!divisor.is_number()) return fail(Code::data_loss, "a frequency divisor is not a number");
    rope.frequency_divisors.push_back(static_cast<float>(divisor.to_number<double>()));
  }
  return rope;
}

Expected<ModelConfig> config_from_json(const json::object& object) {
  ModelConfig c;
  const std::string architecture = MR_TRY(read_text(object, "architecture"));
  const auto pages = architecture_pages();
  const auto page =
      std::ranges::find_if(pages, [&](const ArchitecturePage* p) { return p->model_type == architecture; });
  if (page == pages.end())
    return fail(Code::data_loss, fmt::format("architecture \"{}\" is not known", architecture.substr(0, 80)));
  c.architecture = (*page)->id;
  c.name = MR_TRY(read_text(object, "name"));
  c.vocab_size = MR_TRY(read_size(object, "vocab_size"));
  c.hidden_size = MR_TRY(read_size(object, "hidden_size"));
  c.layers = MR_TRY(read_size(object, "layers"));
  c.q_heads = MR_TRY(read_size(object, "q_heads"));
  c.kv_heads = MR_TRY(read_size(object, "kv_heads"));
  c.head_dim = MR_TRY(read_size(object, "head_dim"));
  c.ffn_size = MR_TRY(read_size(object, "ffn_size"));
  c.rms_norm_eps = static_cast<float>(MR_TRY(read_exact(object, "rms_norm_eps")));
  c.rope = MR_TRY(rope_from_json(*MR_TRY(read_object(object, "rope"))));
  c.tied_embeddings = MR_TRY(read_bool(object, "tied_embeddings", false));
  c.qkv_bias = MR_TRY(read_bool(object, "qkv_bias", false));
  c.o_bias = MR_TRY(read_bool(object, "o_bias", false));
  c.mlp_bias = MR_TRY(read_bool(object, "mlp_bias", false));
  c.qk_norm = MR_TRY(read_bool(object, "qk_norm", false));
  c.max_position = MR_TRY(read_integer(object, "max_position"));
  const auto token_id = [](const json::value& value) -> Expected<TokenId> {
    const auto id = integer_of(value);
    if (!id || *id < -1 || *id > INT32_MAX) return fail(Code::data_loss, "a token id is out of range");
    return static_cast<TokenId>(*id);
  };
  c.bos = MR_TRY(token_id(json::value(MR_TRY(read_integer(object, "bos")))));
  for (const json::value& id : *MR_TRY(read_array(object, "eos", 64))) c.eos.push_back(MR_TRY(token_id(id)));
  const json::object& generation = *MR_TRY(read_object(object, "generation"));
  c.generation.temperature = MR_TRY(read_exact(generation, "temperature"));
  c.generation.top_p = MR_TRY(read_exact(generation, "top_p"));
  c.generation.min_p = MR_TRY(read_exact(generation, "min_p"));
  c.generation.repetition_penalty = MR_TRY(read_exact(generation, "repetition_penalty"));
  c.generation.top_k = MR_TRY(read_size(generation, "top_k"));
  MR_TRY(c.validate());
  return c;
}

// Calls linear(...), gain(...), embed(...) in the plan's order.
struct SectionSizes {
  PackType type;
  std::vector<PlannedSection> out;

  void linear(const PlannedLinear& l) {
    out.push_back({l.section, LinearLayout(type, l.rows(), l.k, l.bias).size});
  }
  void gain(const PlannedGain& g) {
    if (!(g.folded && type == PackType::int8))
      out.push_back({g.section, static_cast<uint64_t>(g.width) * sizeof(float)});
  }
  void operator()(const PlannedEmbed& m) {
    const uint64_t element = type == PackType::int8 ? sizeof(uint16_t) : sizeof(float);
    out.push_back({m.section, static_cast<uint64_t>(m.vocab) * static_cast<uint64_t>(m.width) * element});
  }
  void operator()(const PlannedAttention& m) {
    gain(m.norm);
    linear(m.qkv);
    if (m.q_norm) gain(*m.q_norm);
    if (m.k_norm) gain(*m.k_norm);
    linear(m.o);
  }
  void operator()(const PlannedFfn& m) {
    gain(m.norm);
    linear(m.gate_up);
    linear(m.down);
  }
  void operator()(const PlannedHead& m) {
    gain(m.norm);
    if (!(m.shares_embedding && type == PackType::float32)) linear(m.head);
  }
};

struct Binder {
  PackType type;
  const std::function<const std::byte*(const std::string&)>& at;
  const float* embedding_f32 = nullptr;

  const float* floats(const std::string& section, uint64_t offset = 0) const {
    return reinterpret_cast<const float*>(at(section) + offset);
  }
  const float* gain(const PlannedGain& g) const {
    return g.folded && type == PackType::int8 ? nullptr : floats(g.section);
  }
  Linear linear(const PlannedLinear& l) const {
    Linear out{.n = l.rows(), .k = l.k};
    const LinearLayout layout(type, out.n, out.k, l.bias);
    if (type == PackType::int8) {
      out.s8 = {.tiles = reinterpret_cast<const int8_t*>(at(l.section)),
                .scale = floats(l.section, layout.scale),
                .sum = reinterpret_cast<const int32_t*>(at(l.section) + layout.sum),
                .n = out.n,
                .k = out.k};
    } else {
      out.f32 = floats(l.section);
    }
    if (l.bias) out.bias = floats(l.section, layout.bias);
    return out;
  }
  Module operator()(const PlannedEmbed& m) {
    EmbedModule out{.vocab = m.vocab, .width = m.width};
    if (type == PackType::int8) {
      out.bf16 = reinterpret_cast<const uint16_t*>(at(m.section));
    } else {
      out.f32 = embedding_f32 = floats(m.section);
    }
    return out;
  }
  Module operator()(const PlannedAttention& m) const {
    return AttentionModule{.layer = m.layer,
                           .norm_gain = gain(m.norm),
                           .qkv = linear(m.qkv),
                           .q_norm_gain = m.q_norm ? gain(*m.q_norm) : nullptr,
                           .k_norm_gain = m.k_norm ? gain(*m.k_norm) : nullptr,
                           .o = linear(m.o)};
  }
  Module operator()(const PlannedFfn& m) const {
    return FfnModule{.layer = m.layer,
                     .norm_gain = gain(m.norm),
                     .gate_up = linear(m.gate_up),
                     .hadamard_block = type == PackType::int8 ? m.down.rotate_columns.block : 1,
                     .down = linear(m.down)};
  }
  Module operator()(const PlannedHead& m) const {
    if (m.shares_embedding && type == PackType::float32)
      return HeadModule{.norm_gain = gain(m.norm),
                        .head = {.n = m.head.rows(), .k = m.head.k, .f32 = embedding_f32}};
    return HeadModule{.norm_gain = gain(m.norm), .head = linear(m.head)};
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
  for (const PlannedModule& module : plan.modules) std::visit(sizes, module);
  return std::move(sizes.out);
}

Graph bind_graph(const Plan& plan, PackType type,
                 const std::function<const std::byte*(const std::string&)>& at) {
  Binder binder{.type = type, .at = at};
  Graph graph;
  graph.modules.reserve(plan.modules.size());
  for (const PlannedModule& module : plan.modules) graph.modules.push_back(std::visit(binder, module));
  return graph;
}

uint64_t section_checksum(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (size_t at = 0; at < bytes.size(); at += kChecksumPiece)
    sum = hash64(bytes.subspan(at, std::min(kChecksumPiece, bytes.size() - at)), sum);
  return sum;
}

std::string directory_to_json(PackType type, const ModelConfig& config,
                              const std::vector<Section>& sections) {
  json::array list;
  for (const Section& section : sections)
    list.push_back(json::object{{"name", section.name},
                                {"offset", section.offset},
                                {"size", section.size},
                                {"xxh3", hex(section.checksum)}});
  return json::serialize(json::object{{"type", type == PackType::int8 ? "int8" : "float32"},
                                      {"config", config_to_json(config)},
                                      {"sections", std::move(list)}});
}

Expected<Directory> directory_from_json(std::string_view text) {
  const json::value document = MR_TRY(parse_json(text, kDirectoryLimits));
  if (!document.is_object()) return fail(Code::data_loss, "the directory is not a JSON object");
  const json::object& object = document.get_object();
  Directory out;
  const std::string type = MR_TRY(read_text(object, "type"));
  if (type != "int8" && type != "float32")
    return fail(Code::data_loss, fmt::format("type \"{}\" is not known", type.substr(0, 40)));
  out.type = type == "int8" ? PackType::int8 : PackType::float32;
  out.config = MR_TRY(config_from_json(*MR_TRY(read_object(object, "config"))));
  for (const json::value& entry : *MR_TRY(read_array(object, "sections", 1u << 20))) {
    if (!entry.is_object()) return fail(Code::data_loss, "a section is not an object");
    const json::object& fields = entry.get_object();
    const int64_t offset = MR_TRY(read_integer(fields, "offset")),
                  size = MR_TRY(read_integer(fields, "size"));
    if (offset < 0 || size < 0) return fail(Code::data_loss, "a section's offset or size is negative");
    Section section{.offset = static_cast<uint64_t>(offset), .size = static_cast<uint64_t>(size)};
    section.checksum = MR_TRY(read_hex(fields, "xxh3"));
    section.name = MR_TRY(read_text(fields, "name"));
    out.sections.push_back(std::move(section));
  }
  return out;
}

}  // namespace millrace::model
