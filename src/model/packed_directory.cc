// The packed file's directory as JSON: its config and its sections.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <concepts>
#include <type_traits>
#include <utility>

#include "base/hash.h"
#include "base/json.h"
#include "model/internal/json_fields.h"
#include "model/internal/packed_layout.h"

namespace millrace::model {
namespace {

constexpr JsonLimits kDirectoryLimits{.max_bytes = kMaxDirectoryBytes, .max_depth = 8};

json::string hex(uint64_t value) { return json::string(fmt::format("{:016x}", value)); }

Expected<uint64_t> read_hex(const json::object& object, std::string_view key) {
  const std::string text = MR_TRY(read_text(object, key));
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size())
    return fail(Code::data_loss, fmt::format("\"{}\" is \"{}\", not 16 hex digits", key, text.substr(0, 40)));
  return value;
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

// The fields of a config by their names in the file, stated once: `f` is a Writer or a Reader.
template <class Fields, class Rope>
void rope_fields(Fields& f, Rope& c) {
  f("kind", c.kind);
  f("theta", c.theta);
  f("factor", c.factor);
  f("low_freq_factor", c.low_freq_factor);
  f("high_freq_factor", c.high_freq_factor);
  f("beta_fast", c.beta_fast);
  f("beta_slow", c.beta_slow);
  f("attention_factor", c.attention_factor);
  f("original_max_position", c.original_max_position);
  f("frequency_divisors", c.frequency_divisors);
}
template <class Fields, class Mla>
void mla_fields(Fields& f, Mla& c) {
  if (!f.is_there(c)) return;
  f("kv_lora_rank", c.kv_lora_rank);
  f("q_lora_rank", c.q_lora_rank);
  f("nope_head_dim", c.nope_head_dim);
  f("rope_head_dim", c.rope_head_dim);
  f("value_head_dim", c.value_head_dim);
  f("rope_interleaved", c.rope_interleaved);
  f("latent_norm_eps", c.latent_norm_eps);
}
template <class Fields, class Moe>
void moe_fields(Fields& f, Moe& c) {
  if (!f.is_there(c)) return;
  f("experts", c.experts);
  f("experts_per_token", c.experts_per_token);
  f("ffn_size", c.ffn_size);
  f("shared_ffn_size", c.shared_ffn_size);
  f("shared_gate", c.shared_gate);
  f("layers", c.layers);
  f("score", c.score);
  f("selection_bias", c.selection_bias);
  f("groups", c.groups);
  f("groups_kept", c.groups_kept);
  f("group_score", c.group_score);
  f("one_per_group", c.one_per_group);
  f("normalise", c.normalise);
  f("weight_epsilon", c.weight_epsilon);
  f("weight_scale", c.weight_scale);
  f("expert_scale", c.expert_scale);
}
template <class Fields, class Generation>
void generation_fields(Fields& f, Generation& c) {
  f("temperature", c.temperature);
  f("top_p", c.top_p);
  f("min_p", c.min_p);
  f("repetition_penalty", c.repetition_penalty);
  f("top_k", c.top_k);
}
template <class Fields, class Config>
void config_fields(Fields& f, Config& c) {
  f("architecture", c.architecture);
  f("name", c.name);
  f("vocab_size", c.vocab_size);
  f("hidden_size", c.hidden_size);
  f("layers", c.layers);
  f("q_heads", c.q_heads);
  f("kv_heads", c.kv_heads);
  f("head_dim", c.head_dim);
  f("ffn_size", c.ffn_size);
  f("rms_norm_eps", c.rms_norm_eps);
  f.group("rope", [&](auto& inner) { rope_fields(inner, c.rope); });
  f("tied_embeddings", c.tied_embeddings);
  f("qkv_bias", c.qkv_bias);
  f("o_bias", c.o_bias);
  f("mlp_bias", c.mlp_bias);
  f("qk_norm", c.qk_norm);
  f("sandwich_norm", c.sandwich_norm);
  f("attention_scale", c.attention_scale);
  f.group("mla", [&](auto& inner) { mla_fields(inner, c.mla); });
  f.group("moe", [&](auto& inner) { moe_fields(inner, c.moe); });
  f("mtp_layers", c.mtp_layers);
  f("max_position", c.max_position);
  f.token("bos", c.bos);
  f("eos", c.eos);
  f.group("generation", [&](auto& inner) { generation_fields(inner, c.generation); });
}

struct Writer {
  json::object out;

  template <class T>
  void operator()(std::string_view key, const T& value) {
    if constexpr (std::is_same_v<T, Architecture>) {
      out[key] = architecture_name(value);
    } else if constexpr (std::is_enum_v<T>) {
      out[key] = std::to_underlying(value);
    } else if constexpr (std::is_floating_point_v<T>) {
      // Every bit matters, and Boost.JSON may read a double one unit in the last place off: such numbers are
      // text.
      out[key] = fmt::format("{}", double{value});
    } else {
      out[key] = value;
    }
  }
  void operator()(std::string_view key, const std::vector<uint8_t>& mixtures) {  // '1': a mixture
    std::string text;
    for (const uint8_t mixture : mixtures) text += mixture != 0 ? '1' : '0';
    out[key] = text;
  }
  void operator()(std::string_view key, const std::vector<float>& values) {
    json::array array;
    for (const float value : values) array.push_back(double{value});  // floats survive an ulp of a double
    out[key] = std::move(array);
  }
  void operator()(std::string_view key, const std::vector<TokenId>& ids) {
    out[key] = json::array(ids.begin(), ids.end());
  }
  void token(std::string_view key, TokenId id) { out[key] = id; }
  bool is_there(const auto& part) const { return part.used(); }  // or an empty object
  void group(std::string_view key, const auto& fields) {
    Writer inner;
    fields(inner);
    out[key] = std::move(inner.out);
  }
};

constexpr auto last_of(RopeConfig::Kind) { return RopeConfig::Kind::yarn; }
constexpr auto last_of(MoeConfig::Score) { return MoeConfig::Score::sigmoid; }
constexpr auto last_of(MoeConfig::GroupScore) { return MoeConfig::GroupScore::top2_sum; }

Expected<TokenId> token_id(const json::value& value) {
  const auto id = integer_of(value);
  if (!id || *id < -1 || *id > INT32_MAX) return fail(Code::data_loss, "a token id is out of range");
  return static_cast<TokenId>(*id);
}

Expected<void> read_field(const json::object& in, std::string_view key, int& value) {
  value = MR_TRY(read_size(in, key));
  return {};
}
Expected<void> read_field(const json::object& in, std::string_view key, int64_t& value) {
  value = MR_TRY(read_integer(in, key));
  return {};
}
Expected<void> read_field(const json::object& in, std::string_view key, bool& value) {
  value = MR_TRY(read_bool(in, key, value));
  return {};
}
Expected<void> read_field(const json::object& in, std::string_view key, std::string& value) {
  value = MR_TRY(read_text(in, key));
  return {};
}
template <std::floating_point T>
Expected<void> read_field(const json::object& in, std::string_view key, T& value) {
  const std::string text = MR_TRY(read_text(in, key));
  double exact = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), exact);
  if (error != std::errc() || end != text.data() + text.size())
    return fail(Code::data_loss, fmt::format("\"{}\" is \"{}\", not a number", key, text.substr(0, 40)));
  value = static_cast<T>(exact);
  return {};
}
template <class T>
requires std::is_enum_v<T> Expected<void> read_field(const json::object& in, std::string_view key, T& value) {
  const int number = MR_TRY(read_size(in, key));
  if (number > static_cast<int>(std::to_underlying(last_of(T{}))))
    return fail(Code::data_loss, fmt::format("{} {} is not known", key, number));
  value = static_cast<T>(number);
  return {};
}
Expected<void> read_field(const json::object& in, std::string_view key, Architecture& value) {
  const std::string name = MR_TRY(read_text(in, key));
  const auto pages = architecture_pages();
  const auto page = std::ranges::find(pages, name, &ArchitecturePage::model_type);
  if (page == pages.end())
    return fail(Code::data_loss, fmt::format("architecture \"{}\" is not known", name.substr(0, 80)));
  value = architecture_of(**page);
  return {};
}
Expected<void> read_field(const json::object& in, std::string_view key, std::vector<uint8_t>& mixtures) {
  for (const char layer : MR_TRY(read_text(in, key))) mixtures.push_back(layer == '1' ? 1 : 0);
  return {};
}
Expected<void> read_field(const json::object& in, std::string_view key, std::vector<float>& values) {
  for (const json::value& value : *MR_TRY(read_array(in, key, 1024))) {
    if (!value.is_number()) return fail(Code::data_loss, fmt::format("\"{}\" has what is not a number", key));
    values.push_back(static_cast<float>(value.to_number<double>()));
  }
  return {};
}
Expected<void> read_field(const json::object& in, std::string_view key, std::vector<TokenId>& ids) {
  for (const json::value& id : *MR_TRY(read_array(in, key, 64))) ids.push_back(MR_TRY(token_id(id)));
  return {};
}

struct Reader {
  const json::object& in;
  Expected<void>& status;  // the first error; nothing is read after it

  template <class T>
  void operator()(std::string_view key, T& value) {
    if (status) status = read_field(in, key, value);
  }
  void token(std::string_view key, TokenId& id) {
    int64_t number = -1;
    (*this)(key, number);
    if (!status) return;
    if (const auto read = token_id(number)) {
      id = *read;
    } else {
      status = std::unexpected(read.error());
    }
  }
  bool is_there(const auto&) const { return !in.empty(); }
  void group(std::string_view key, const auto& fields) {
    if (!status) return;
    const auto object = read_object(in, key);
    if (!object) {
      status = std::unexpected(object.error());
      return;
    }
    Reader inner{**object, status};
    fields(inner);
  }
};

json::object config_to_json(const ModelConfig& config) {
  Writer writer;
  config_fields(writer, config);
  return std::move(writer.out);
}

Expected<ModelConfig> config_from_json(const json::object& object) {
  ModelConfig config;
  Expected<void> status;
  Reader reader{object, status};
  config_fields(reader, config);
  MR_TRY(status);
  MR_TRY(config.validate());
  return config;
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
