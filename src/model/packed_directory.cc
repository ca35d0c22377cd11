// The packed file's directory as JSON: its config and its sections.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "base/hash.h"
#include "base/json.h"
#include "model/internal/json_fields.h"
#include "model/internal/packed_layout.h"

namespace millrace::model {
namespace {

constexpr JsonLimits kDirectoryLimits{.max_bytes = kMaxDirectoryBytes, .max_depth = 8};

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

json::object mla_to_json(const MlaConfig& c) {
  if (!c.used()) return {};
  return {{"kv_lora_rank", c.kv_lora_rank},
          {"q_lora_rank", c.q_lora_rank},
          {"nope_head_dim", c.nope_head_dim},
          {"rope_head_dim", c.rope_head_dim},
          {"value_head_dim", c.value_head_dim},
          {"rope_interleaved", c.rope_interleaved},
          {"latent_norm_eps", exact(double{c.latent_norm_eps})}};
}

json::object moe_to_json(const MoeConfig& c) {
  if (!c.used()) return {};
  std::string layers;  // '1': a mixture
  for (const uint8_t mixture : c.layers) layers += mixture != 0 ? '1' : '0';
  return {{"experts", c.experts},
          {"experts_per_token", c.experts_per_token},
          {"ffn_size", c.ffn_size},
          {"shared_ffn_size", c.shared_ffn_size},
          {"shared_gate", c.shared_gate},
          {"layers", layers},
          {"score", std::to_underlying(c.score)},
          {"selection_bias", c.selection_bias},
          {"groups", c.groups},
          {"groups_kept", c.groups_kept},
          {"group_score", std::to_underlying(c.group_score)},
          {"one_per_group", c.one_per_group},
          {"normalise", c.normalise},
          {"weight_epsilon", exact(double{c.weight_epsilon})},
          {"weight_scale", exact(double{c.weight_scale})},
          {"expert_scale", c.expert_scale}};
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
          {"sandwich_norm", c.sandwich_norm},
          {"attention_scale", exact(double{c.attention_scale})},
          {"mla", mla_to_json(c.mla)},
          {"moe", moe_to_json(c.moe)},
          {"mtp_layers", c.mtp_layers},
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

Expected<MlaConfig> mla_from_json(const json::object& object) {
  MlaConfig c;
  if (object.empty()) return c;
  c.kv_lora_rank = MR_TRY(read_size(object, "kv_lora_rank"));
  c.q_lora_rank = MR_TRY(read_size(object, "q_lora_rank"));
  c.nope_head_dim = MR_TRY(read_size(object, "nope_head_dim"));
  c.rope_head_dim = MR_TRY(read_size(object, "rope_head_dim"));
  c.value_head_dim = MR_TRY(read_size(object, "value_head_dim"));
  c.rope_interleaved = MR_TRY(read_bool(object, "rope_interleaved", true));
  c.latent_norm_eps = static_cast<float>(MR_TRY(read_exact(object, "latent_norm_eps")));
  return c;
}

Expected<MoeConfig> moe_from_json(const json::object& object) {
  MoeConfig c;
  if (object.empty()) return c;
  const auto choice = [&](std::string_view key) -> Expected<uint32_t> {  // of two
    const int value = MR_TRY(read_size(object, key));
    if (value > 1) return fail(Code::data_loss, fmt::format("{} {} is not known", key, value));
    return static_cast<uint32_t>(value);
  };
  c.experts = MR_TRY(read_size(object, "experts"));
  c.experts_per_token = MR_TRY(read_size(object, "experts_per_token"));
  c.ffn_size = MR_TRY(read_size(object, "ffn_size"));
  c.shared_ffn_size = MR_TRY(read_size(object, "shared_ffn_size"));
  c.shared_gate = MR_TRY(read_bool(object, "shared_gate", false));
  for (const char layer : MR_TRY(read_text(object, "layers"))) c.layers.push_back(layer == '1' ? 1 : 0);
  c.score = static_cast<MoeConfig::Score>(MR_TRY(choice("score")));
  c.selection_bias = MR_TRY(read_bool(object, "selection_bias", false));
  c.groups = MR_TRY(read_size(object, "groups"));
  c.groups_kept = MR_TRY(read_size(object, "groups_kept"));
  c.group_score = static_cast<MoeConfig::GroupScore>(MR_TRY(choice("group_score")));
  c.one_per_group = MR_TRY(read_bool(object, "one_per_group", false));
  c.normalise = MR_TRY(read_bool(object, "normalise", false));
  c.weight_epsilon = static_cast<float>(MR_TRY(read_exact(object, "weight_epsilon")));
  c.weight_scale = static_cast<float>(MR_TRY(read_exact(object, "weight_scale")));
  c.expert_scale = MR_TRY(read_bool(object, "expert_scale", false));
  return c;
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
  c.sandwich_norm = MR_TRY(read_bool(object, "sandwich_norm", false));
  c.attention_scale = static_cast<float>(MR_TRY(read_exact(object, "attention_scale")));
  c.mla = MR_TRY(mla_from_json(*MR_TRY(read_object(object, "mla"))));
  c.moe = MR_TRY(moe_from_json(*MR_TRY(read_object(object, "moe"))));
  c.mtp_layers = MR_TRY(read_size(object, "mtp_layers"));
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

}  // namespace

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

uint64_t fingerprint_of(const Directory& directory) {
  ModelConfig config = directory.config;
  config.name.clear();
  config.generation = {};
  uint64_t sum = hash64(directory_to_json(directory.type, config, {}));
  for (const Section& section : directory.sections) {
    const uint64_t facts[] = {section.offset, section.size, section.checksum};
    sum = hash64(std::as_bytes(std::span(facts)), hash64(section.name, sum));
  }
  return sum;
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
