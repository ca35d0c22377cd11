// config.json as transformers 4 and 5 write it. Version 5 gathers RoPE under "rope_parameters" (with
// rope_theta inside) and writes "dtype"; version 4 has "rope_theta" beside "rope_scaling" {"type" or
// "rope_type"}. Both are read.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>

#include "base/json.h"
#include "model/config.h"
#include "model/internal/architecture.h"
#include "model/internal/json_fields.h"

namespace millrace::model {
namespace {

constexpr JsonLimits kConfigLimits{.max_bytes = size_t{4} << 20, .max_depth = 32};

Expected<json::object> parse_object(std::string_view text, std::string_view what) {
  auto value = parse_json(text, kConfigLimits);
  if (!value) return invalid(fmt::format("{}: {}", what, value.error().message));
  if (!value->is_object()) return invalid(fmt::format("{} is not a JSON object", what));
  return std::move(value->get_object());
}

// Families whose computation is not ours, by name: a better answer than a list of those that are.
struct Refused {
  std::string_view model_type, why;
};
constexpr Refused kRefused[] = {
    {"deepseek_v32", "its sparse attention (index_topk) is not computed"},
    {"qwen3_next", "its linear attention (Gated DeltaNet) is not computed"},
    {"qwen3_5", "its linear attention (Gated DeltaNet) is not computed"},
    {"qwen3_5_moe", "its linear attention (Gated DeltaNet) is not computed"},
};

bool is_one_of(std::string_view text, std::string_view first, std::span<const std::string_view> others) {
  return text == first || std::ranges::find(others, text) != others.end();
}

Expected<const ArchitecturePage*> page_of(const json::object& config) {
  const std::string model_type = MR_TRY(read_text(config, "model_type"));
  std::vector<std::string_view> known;
  for (const ArchitecturePage* page : architecture_pages()) {
    known.push_back(page->model_type);
    known.insert(known.end(), page->also_model_types.begin(), page->also_model_types.end());
    if (!is_one_of(model_type, page->model_type, page->also_model_types)) continue;
    if (const json::value* classes = field_of(config, "architectures");
        classes != nullptr && classes->is_array() && !classes->get_array().empty()) {
      const json::value& first = classes->get_array()[0];
      if (!first.is_string() || !is_one_of(first.get_string(), page->causal_lm_class, page->also_classes))
        return fail(Code::unimplemented,
                    fmt::format("\"architectures\" is {}; a {} is expected",
                                json::serialize(*classes).substr(0, 200), page->causal_lm_class));
    }
    return page;
  }
  for (const Refused& refused : kRefused)
    if (refused.model_type == model_type)
      return fail(Code::unimplemented,
                  fmt::format("model_type \"{}\" is not supported: {}", model_type, refused.why));
  return fail(Code::unimplemented, fmt::format("model_type \"{}\" is not supported; supported are {}",
                                               model_type.substr(0, 80), fmt::join(known, ", ")));
}

// Block-scaled FP8 is read as floats, tensor by tensor; nothing else that is quantised is.
Expected<void> refuse_quantised(const json::object& config) {
  const json::value* value = field_of(config, "quantization_config");
  if (value == nullptr) return {};
  if (!value->is_object())
    return invalid("\"quantization_config\" is not a JSON object", "quantization_config");
  const json::object& object = value->get_object();
  const std::string method = MR_TRY(read_text(object, "quant_method", ""));
  const json::value* block = field_of(object, "weight_block_size");
  const std::string size = block == nullptr ? "absent" : json::serialize(*block).substr(0, 80);
  if (method == "fp8" && size == "[128,128]") return {};
  return fail(
      Code::unimplemented,
      fmt::format(
          "the checkpoint is quantised (quantization_config: quant_method \"{}\", weight_block_size {}); "
          "use the F32, F16 or BF16 one, or FP8 in blocks of [128,128]",
          method.substr(0, 80), size));
}

// Keys whose other values mean a computation that we do not do.
Expected<void> refuse_unsupported(const json::object& config) {
  const std::string activation = MR_TRY(read_text(config, "hidden_act", "silu"));
  if (activation != "silu" && activation != "swish")
    return fail(Code::unimplemented,
                fmt::format("hidden_act \"{}\" is not supported; silu is", activation.substr(0, 80)));
  MR_TRY(refuse_quantised(config));
  for (const std::string_view key : {"index_topk", "param_sink_number", "use_mhc"})
    if (const json::value* value = field_of(config, key);
        value != nullptr && !(value->is_bool() && !value->get_bool()) && integer_of(*value) != 0)
      return fail(Code::unimplemented, fmt::format("{} is {}; what it switches on is not computed", key,
                                                   json::serialize(*value).substr(0, 80)));
  if (MR_TRY(read_bool(config, "use_sliding_window", false)))
    return fail(Code::unimplemented, "use_sliding_window is true; sliding-window attention is not supported");
  if (MR_TRY(read_bool(config, "rope_interleaved", false)))
    return fail(Code::unimplemented, "rope_interleaved is true; half-split RoPE is supported");
  if (const json::value* types = field_of(config, "layer_types")) {
    if (!types->is_array()) return invalid("\"layer_types\" is not an array", "layer_types");
    for (const json::value& type : types->get_array())
      if (!type.is_string() || type.get_string() != "full_attention")
        return fail(Code::unimplemented, fmt::format("layer_types has {}; full_attention is supported",
                                                     json::serialize(type).substr(0, 80)));
  }
  return {};
}

Expected<void> read_yarn(const json::object& scaling, RopeConfig& rope) {
  if (!MR_TRY(read_bool(scaling, "truncate", true)))
    return fail(Code::unimplemented,
                "YaRN with truncate false is not supported: its boundaries are rounded to whole pairs here");
  rope.beta_fast = MR_TRY(read_number(scaling, "beta_fast", 32));
  rope.beta_slow = MR_TRY(read_number(scaling, "beta_slow", 1));
  const auto amplitude = [&](double weight) {
    return rope.factor <= 1 ? 1.0 : 0.1 * weight * std::log(rope.factor) + 1.0;
  };
  const double mscale = MR_TRY(read_number(scaling, "mscale", 0));
  const double mscale_all_dim = MR_TRY(read_number(scaling, "mscale_all_dim", 0));
  double fallback = amplitude(1);
  if (mscale != 0 && mscale_all_dim != 0) fallback = amplitude(mscale) / amplitude(mscale_all_dim);
  rope.attention_factor = MR_TRY(read_number(scaling, "attention_factor", fallback));
  return {};
}

Expected<void> read_rope(const json::object& config, ModelConfig& out) {
  RopeConfig& rope = out.rope;
  rope.theta = MR_TRY(read_number(config, "rope_theta", 10000));
  const json::value* scaling_value = field_of(config, "rope_parameters");
  if (scaling_value == nullptr) scaling_value = field_of(config, "rope_scaling");
  if (scaling_value == nullptr) return {};
  if (!scaling_value->is_object())
    return invalid("the RoPE parameters are not a JSON object", "rope_parameters");
  const json::object& scaling = scaling_value->get_object();
  rope.theta = MR_TRY(read_number(scaling, "rope_theta", rope.theta));
  if (const double part = MR_TRY(read_number(scaling, "partial_rotary_factor", 1)); part != 1)
    return fail(Code::unimplemented,
                fmt::format("partial_rotary_factor is {}; only full RoPE is supported", part));
  std::string type = MR_TRY(read_text(scaling, "rope_type", ""));
  if (type.empty()) type = MR_TRY(read_text(scaling, "type", "default"));
  if (type == "default") return {};
  if (type == "linear") {
    rope.kind = RopeConfig::Kind::linear;
  } else if (type == "llama3") {
    rope.kind = RopeConfig::Kind::llama3;
  } else if (type == "yarn") {
    rope.kind = RopeConfig::Kind::yarn;
  } else {
    return fail(Code::unimplemented,
                fmt::format("RoPE type \"{}\" is not supported; default, linear, llama3 and yarn are",
                            type.substr(0, 80)));
  }
  rope.factor = MR_TRY(read_number(scaling, "factor"));
  if (rope.kind == RopeConfig::Kind::linear) return {};
  rope.original_max_position = MR_TRY(
      read_integer(scaling, "original_max_position_embeddings",
                   MR_TRY(read_integer(config, "original_max_position_embeddings", out.max_position))));
  if (rope.kind == RopeConfig::Kind::yarn) return read_yarn(scaling, rope);
  rope.low_freq_factor = MR_TRY(read_number(scaling, "low_freq_factor"));
  rope.high_freq_factor = MR_TRY(read_number(scaling, "high_freq_factor"));
  return {};
}

// A token id as one number or a list of them.
Expected<std::vector<TokenId>> read_ids(const json::object& object, std::string_view key) {
  std::vector<TokenId> ids;
  const json::value* value = field_of(object, key);
  if (value == nullptr) return ids;
  const auto add = [&](const json::value& element) -> Expected<void> {
    const auto id = integer_of(element);
    if (!id || *id < INT32_MIN || *id > INT32_MAX)
      return invalid(
          fmt::format("\"{}\" has {}, not a token id", key, json::serialize(element).substr(0, 80)),
          std::string(key));
    if (std::find(ids.begin(), ids.end(), static_cast<TokenId>(*id)) == ids.end())
      ids.push_back(static_cast<TokenId>(*id));
    return {};
  };
  if (!value->is_array()) {
    MR_TRY(add(*value));
    return ids;
  }
  if (value->get_array().size() > 64)
    return invalid(fmt::format("\"{}\" has {} entries; at most 64", key, value->get_array().size()),
                   std::string(key));
  for (const json::value& element : value->get_array()) MR_TRY(add(element));
  return ids;
}

Expected<void> read_generation(const json::object& file, ModelConfig& out) {
  GenerationDefaults& defaults = out.generation;
  defaults.temperature = MR_TRY(read_number(file, "temperature", defaults.temperature));
  defaults.top_p = MR_TRY(read_number(file, "top_p", defaults.top_p));
  defaults.min_p = MR_TRY(read_number(file, "min_p", defaults.min_p));
  defaults.repetition_penalty = MR_TRY(read_number(file, "repetition_penalty", defaults.repetition_penalty));
  // Off is 0 to transformers and -1 to vLLM; openPangu-R-72B ships the latter.
  const int64_t top_k = MR_TRY(read_integer(file, "top_k", defaults.top_k));
  if (top_k > INT32_MAX) return invalid(fmt::format("\"top_k\" is {}, out of range", top_k), "top_k");
  defaults.top_k = static_cast<int>(std::max<int64_t>(top_k, 0));
  // The ids that end a turn: this file knows the turn token where config.json may only know the end of a
  // document.
  if (auto ids = MR_TRY(read_ids(file, "eos_token_id")); !ids.empty()) out.eos = std::move(ids);
  return {};
}

}  // namespace

Expected<void> apply_generation_config(std::string_view generation_config_json, ModelConfig& config) {
  const json::object file = MR_TRY(parse_object(generation_config_json, "generation_config.json"));
  return read_generation(file, config);
}

Expected<ModelConfig> config_from_hugging_face(std::string_view config_json,
                                               std::string_view generation_config_json) {
  const json::object file = MR_TRY(parse_object(config_json, "config.json"));
  const ArchitecturePage* page = MR_TRY(page_of(file));
  MR_TRY(refuse_unsupported(file));
  ModelConfig out;
  out.architecture = architecture_of(*page);
  out.vocab_size = MR_TRY(read_size(file, "vocab_size"));
  out.hidden_size = MR_TRY(read_size(file, "hidden_size"));
  out.layers = MR_TRY(read_size(file, "num_hidden_layers"));
  out.q_heads = MR_TRY(read_size(file, "num_attention_heads"));
  out.kv_heads = MR_TRY(read_size(file, "num_key_value_heads", out.q_heads));
  out.head_dim = MR_TRY(read_size(file, "head_dim", out.q_heads > 0 ? out.hidden_size / out.q_heads : 0));
  // A model of nothing but mixtures may leave out the dense width.
  const auto ffn_size = page->mixture ? read_size(file, "intermediate_size",
                                                  MR_TRY(read_size(file, "moe_intermediate_size", 0)))
                                      : read_size(file, "intermediate_size");
  out.ffn_size = MR_TRY(Expected<int>(ffn_size));
  out.rms_norm_eps = static_cast<float>(MR_TRY(read_number(file, "rms_norm_eps", 1e-6)));
  out.tied_embeddings = MR_TRY(read_bool(file, "tie_word_embeddings", false));
  out.max_position = MR_TRY(read_integer(file, "max_position_embeddings", 2048));
  if (const double part = MR_TRY(read_number(file, "partial_rotary_factor", 1)); part != 1)
    return fail(Code::unimplemented,
                fmt::format("partial_rotary_factor is {}; only full RoPE is supported", part));
  MR_TRY(read_rope(file, out));
  const auto bos = MR_TRY(read_ids(file, "bos_token_id"));
  out.bos = bos.empty() ? -1 : bos[0];
  out.eos = MR_TRY(read_ids(file, "eos_token_id"));
  MR_TRY(page->from_hugging_face(file, out));
  if (!generation_config_json.empty()) MR_TRY(apply_generation_config(generation_config_json, out));
  MR_TRY(out.validate());
  return out;
}

}  // namespace millrace::model
