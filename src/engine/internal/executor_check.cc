// Whether a graph's modules fit its config: a packed file is a file like any other.
#include <fmt/core.h>

#include <algorithm>

#include "engine/internal/executor.h"
#include "model/kv_shape.h"

namespace millrace::engine {
namespace {

Expected<void> wrong(std::string text) { return fail(Code::data_loss, std::move(text)); }

// One module's parts, with its name and layer for the messages.
struct Check {
  const model::ModelConfig& config;
  const bool int8;
  std::string where;
  int layer_begin = 0, layer_end = 0;  // layers that there may be

  Expected<void> linear(const model::Linear& linear, int64_t n, int64_t k, const char* name) const {
    if (linear.n != n || linear.k != k)
      return wrong(fmt::format("the model's {}{} is {} x {}, expected {} x {}", where, name, linear.n,
                               linear.k, n, k));
    if ((int8 && linear.s8.tiles == nullptr) || (!int8 && linear.f32 == nullptr))
      return wrong(fmt::format("the model's {}{} has no {} weights", where, name, int8 ? "INT8" : "float32"));
    return {};
  }
  Expected<void> present(const void* part, bool wanted, const char* name) const {
    if ((part != nullptr) == wanted) return {};
    return wrong(fmt::format("the model's {}{} {}", where, name,
                             wanted ? "is missing" : "is there, and its config knows none"));
  }
  Expected<void> layer(int number) const {
    if (number >= layer_begin && number < layer_end) return {};
    return wrong(fmt::format("the model's layer {} is not where its config says: from {} to {}", number,
                             layer_begin, layer_end - 1));
  }
  Expected<void> post_norm(const float* gain) const {
    return present(gain, config.sandwich_norm, "norm after the branch");
  }
  Expected<void> ffn(const model::Linear& gate_up, const model::Linear& down, int64_t width,
                     int block) const {
    MR_TRY(linear(gate_up, 2 * width, config.hidden_size, "gate_up"));
    MR_TRY(linear(down, config.hidden_size, width, "down"));
    if (!int8 && block > 1) return wrong("a float32 model with rotated weights is not supported");
    if (block < 1 || (block & (block - 1)) != 0 || width % block != 0)
      return wrong(
          fmt::format("the model's {}rotation is in blocks of {}, for a width of {}", where, block, width));
    return {};
  }

  Expected<void> operator()(const model::EmbedModule& m) const {
    if (m.vocab < config.vocab_size || m.width != config.hidden_size)
      return wrong("the model's embedding does not match its config");
    return {};
  }
  Expected<void> operator()(const model::AttentionModule& m) const {
    MR_TRY(layer(m.layer));
    if (config.mla.used()) return wrong("the model's config has latent attention, its graph has not");
    const int64_t q = int64_t{config.q_heads} * config.head_dim,
                  kv = int64_t{config.kv_heads} * config.head_dim;
    MR_TRY(linear(m.qkv, q + 2 * kv, config.hidden_size, "qkv"));
    MR_TRY(linear(m.o, config.hidden_size, q, "attention output"));
    return post_norm(m.post_norm_gain);
  }
  Expected<void> operator()(const model::MlaModule& m) const {
    MR_TRY(layer(m.layer));
    const auto& mla = config.mla;
    const int64_t heads = config.q_heads, dim = int64_t{mla.nope_head_dim} + mla.rope_head_dim;
    if (!mla.used() || config.kv_heads != 1 || config.head_dim != dim || mla.nope_head_dim < 1 ||
        mla.rope_head_dim < 2 || mla.rope_head_dim % 2 != 0 || mla.value_head_dim < 1)
      return wrong(fmt::format(
          "the model's latent attention has heads of {} + {} and values of {}; its config says "
          "{} KV heads of {}",
          mla.nope_head_dim, mla.rope_head_dim, mla.value_head_dim, config.kv_heads, config.head_dim));
    const int64_t q = mla.q_lora_rank > 0 ? mla.q_lora_rank : heads * dim;
    MR_TRY(linear(m.in, q + mla.kv_lora_rank + mla.rope_head_dim, config.hidden_size, "attention input"));
    if (mla.q_lora_rank > 0) {
      MR_TRY(linear(m.q_up, heads * dim, mla.q_lora_rank, "q_up"));
    } else if (m.q_up.n != 0) {
      return wrong("the model's config has no latent for queries, its graph has one");
    }
    MR_TRY(linear(m.k_up, heads * mla.kv_lora_rank, mla.nope_head_dim, "k_up"));
    MR_TRY(linear(m.v_up, heads * mla.value_head_dim, mla.kv_lora_rank, "v_up"));
    MR_TRY(linear(m.o, config.hidden_size, heads * mla.value_head_dim, "attention output"));
    return post_norm(m.post_norm_gain);
  }
  Expected<void> operator()(const model::FfnModule& m) const {
    MR_TRY(layer(m.layer));
    MR_TRY(ffn(m.gate_up, m.down, config.ffn_size, m.hadamard_block));
    return post_norm(m.post_norm_gain);
  }
  Expected<void> operator()(const model::RouterModule& m) const {
    MR_TRY(layer(m.layer));
    const auto& moe = config.moe;
    if (!moe.used() || moe.experts_per_token < 1 || moe.experts_per_token > moe.experts || moe.groups < 1 ||
        moe.experts % moe.groups != 0 || moe.groups_kept < 1 || moe.groups_kept > moe.groups ||
        moe.experts_per_token > moe.groups_kept * (moe.experts / moe.groups) ||
        (moe.one_per_group && moe.experts_per_token != moe.groups))
      return wrong(fmt::format("the model picks {} of {} experts in {} groups", moe.experts_per_token,
                               moe.experts, moe.groups));
    MR_TRY(present(m.weight, true, "router"));
    MR_TRY(present(m.selection_bias, moe.selection_bias, "selection bias"));
    MR_TRY(present(m.expert_scale, moe.expert_scale, "expert scale"));
    return post_norm(m.post_norm_gain);
  }
  Expected<void> operator()(const model::ExpertModule& m) const {
    return ffn(m.gate_up, m.down, config.moe.ffn_size, m.hadamard_block);
  }
  Expected<void> operator()(const model::SharedExpertModule& m) const {
    if (config.moe.shared_ffn_size <= 0)
      return wrong("the model's config has no shared expert, its graph has one");
    MR_TRY(present(m.gate, config.moe.shared_gate, "shared expert's gate"));
    return ffn(m.gate_up, m.down, config.moe.shared_ffn_size, m.hadamard_block);
  }
  Expected<void> operator()(const model::HeadModule& m) const {
    return linear(m.head, config.vocab_size, config.hidden_size, "head");
  }
};

std::string place_of(const model::Module& module) {
  const auto at = [](const char* kind, int layer) { return fmt::format("layer {}'s {}", layer, kind); };
  if (const auto* m = std::get_if<model::AttentionModule>(&module)) return at("", m->layer);
  if (const auto* m = std::get_if<model::MlaModule>(&module)) return at("", m->layer);
  if (const auto* m = std::get_if<model::FfnModule>(&module)) return at("", m->layer);
  if (const auto* m = std::get_if<model::RouterModule>(&module)) return at("", m->layer);
  if (const auto* m = std::get_if<model::SharedExpertModule>(&module))
    return at("shared expert's ", m->layer);
  if (const auto* m = std::get_if<model::ExpertModule>(&module))
    return at("expert ", m->layer) + fmt::format("{}'s ", m->expert);
  return {};
}

}  // namespace

Expected<void> Executor::check_graph() const {
  MR_TRY(model::check_attention(config_, model_->type()));
  const auto& modules = model_->graph().modules;
  if (modules.size() < 2 || !std::holds_alternative<model::EmbedModule>(modules.front()) ||
      !std::holds_alternative<model::HeadModule>(modules.back()))
    return wrong("the model's graph must start with an embedding and end with a head");
  for (const auto& module : modules)
    MR_TRY(std::visit(Check{config_, int8_, place_of(module), 0, config_.layers}, module));
  MR_TRY(check_mixtures(modules));
  return mtp_ == nullptr ? Expected<void>{} : check_mtp();
}

// An attention and what follows it, as the last layer, between the joined states and a head.
Expected<void> Executor::check_mtp() const {
  const int layer = config_.layers, block = mtp_->hadamard_block;
  const Check check{config_, int8_, "MTP layer's ", layer, layer + 1};
  const auto& modules = mtp_->modules;
  const bool attends = !modules.empty() && (std::holds_alternative<model::AttentionModule>(modules.front()) ||
                                            std::holds_alternative<model::MlaModule>(modules.front()));
  const auto is_once = [](const model::Module& module) {
    return std::holds_alternative<model::EmbedModule>(module) ||
           std::holds_alternative<model::HeadModule>(module);
  };
  if (!attends || mtp_->layer != layer || std::ranges::any_of(modules, is_once))
    return wrong(fmt::format("the model's MTP layer {} must be layer {} and start with attention",
                             mtp_->layer, layer));
  for (const auto& module : modules)
    MR_TRY(std::visit(Check{config_, int8_, "MTP " + place_of(module), layer, layer + 1}, module));
  MR_TRY(check_mixtures(modules));
  MR_TRY(check.linear(mtp_->eh, config_.hidden_size, int64_t{2} * config_.hidden_size, "eh"));
  MR_TRY(check.present(mtp_->model_norm_gain, true, "norm of the model's state"));
  MR_TRY(check.present(mtp_->head_norm_gain, true, "head norm"));
  if (block < 1 || (block & (block - 1)) != 0 || config_.hidden_size % block != 0)
    return wrong(fmt::format("the model's MTP layer turns blocks of {}, for a width of {}", block,
                             config_.hidden_size));
  return check(mtp_->head);
}

// A router is followed by all of its layer's experts, in order, alike, and by the shared expert if there is
// one.
Expected<void> Executor::check_mixtures(std::span<const model::Module> modules) const {
  const bool shared = config_.moe.shared_ffn_size > 0;
  for (size_t i = 0; i < modules.size(); ++i) {
    if (std::holds_alternative<model::ExpertModule>(modules[i]) ||
        std::holds_alternative<model::SharedExpertModule>(modules[i]))
      return wrong(fmt::format("module {} of the model is an expert without a router", i));
    const auto* router = std::get_if<model::RouterModule>(&modules[i]);
    if (router == nullptr) continue;
    const model::ExpertModule* first = nullptr;
    for (int e = 0; e < config_.moe.experts; ++e) {
      const auto* expert = ++i < modules.size() ? std::get_if<model::ExpertModule>(&modules[i]) : nullptr;
      if (first == nullptr) first = expert;
      if (expert == nullptr || expert->expert != e || expert->layer != router->layer ||
          expert->hadamard_block != first->hadamard_block)
        return wrong(
            fmt::format("layer {} of the model lacks expert {} of {}, or has it elsewhere or rotated "
                        "differently from the others",
                        router->layer, e, config_.moe.experts));
    }
    if (!shared) continue;
    const auto* common = ++i < modules.size() ? std::get_if<model::SharedExpertModule>(&modules[i]) : nullptr;
    if (common == nullptr || common->layer != router->layer)
      return wrong(fmt::format("layer {} of the model lacks its shared expert", router->layer));
  }
  return {};
}

}  // namespace millrace::engine
