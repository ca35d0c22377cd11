#include "engine/bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/json.h"
#include "base/random.h"
#include "engine/internal/engine_core.h"
#include "engine/internal/executor.h"
#include "kernels/machine_peak.h"

namespace millrace::engine {
namespace {

constexpr int kPromptTokens = 16;  // of a decode sequence
constexpr int kTextPromptTokens = 32;
constexpr int kMaxBatch = 1024, kMaxRuns = 100;
constexpr int kDraftRows = 64;  // guesses in a step, as the engine has
constexpr size_t kMaxTextTokens = 1 << 20;

// Bytes of weights that a step reads, and weights that each of its tokens multiplies with.
struct Weights {
  double token_weights = 0;  // without the head, which a prompt's tokens but the last leave out
  double head_weights = 0;
  double step_bytes = 0;    // whatever the batch
  double expert_bytes = 0;  // of all routed experts
  int experts = 0, experts_per_token = 0;
  // A row misses an expert with probability 1 - k / E (choices as good as random, which trained routers
  // nearly make), so `batch` rows together read this share of the experts.
  double step_bytes_of(int batch) const {
    if (experts == 0) return step_bytes;
    const double missed = std::pow(1 - static_cast<double>(experts_per_token) / experts, batch);
    return step_bytes + expert_bytes * (1 - missed);
  }
};
Weights count_weights(const model::PackedModel& packed) {
  const auto& moe = packed.config().moe;
  Weights weights{.experts = moe.experts, .experts_per_token = moe.experts_per_token};
  const auto count = [](const model::Linear& linear) { return static_cast<double>(linear.n) * linear.k; };
  const auto bytes = [](const model::Linear& linear) { return linear.f32 != nullptr ? 4.0 : 1.0; };
  const auto add = [&](std::initializer_list<const model::Linear*> linears) {
    for (const auto* linear : linears) {
      weights.step_bytes += count(*linear) * bytes(*linear);
      weights.token_weights += count(*linear);
    }
  };
  for (const auto& module : packed.graph().modules) {
    if (const auto* attention = std::get_if<model::AttentionModule>(&module)) {
      add({&attention->qkv, &attention->o});
    } else if (const auto* mla = std::get_if<model::MlaModule>(&module)) {
      add({&mla->in, &mla->q_up, &mla->k_up, &mla->v_up, &mla->o});
    } else if (const auto* ffn = std::get_if<model::FfnModule>(&module)) {
      add({&ffn->gate_up, &ffn->down});
    } else if (const auto* shared = std::get_if<model::SharedExpertModule>(&module)) {
      add({&shared->gate_up, &shared->down});
    } else if (std::holds_alternative<model::RouterModule>(module)) {
      weights.step_bytes +=
          4.0 * moe.experts * packed.config().hidden_size;  // float32; its share of the work is not counted
    } else if (const auto* expert = std::get_if<model::ExpertModule>(&module)) {
      const double both = count(expert->gate_up) + count(expert->down);
      weights.expert_bytes += both * bytes(expert->down);
      weights.token_weights += both * moe.experts_per_token / moe.experts;
    } else if (const auto* head = std::get_if<model::HeadModule>(&module)) {
      weights.step_bytes += count(head->head) * bytes(head->head);
      weights.head_weights = count(head->head);
    }
  }
  return weights;
}

struct Bench {
  std::shared_ptr<const model::PackedModel> packed;
  std::shared_ptr<const model::Tokenizer> tokenizer;
  const BenchOptions& options;
  std::unique_ptr<Executor> executor;
  KvPool pool;
  int64_t longest = 0;
  uint64_t next_id = 1;
  std::vector<TokenId> text;  // prompts are cut from it, where it is not empty
  DraftCosts draft_costs;

  GenerateRequest request(int prompt, int reply) {
    GenerateRequest request{.id = RequestId(next_id)};
    const auto begin = text.empty() ? 0 : next_id * 997 % (text.size() - static_cast<size_t>(prompt));
    if (!text.empty())
      request.prompt.tokens.assign(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                   text.begin() + static_cast<std::ptrdiff_t>(begin) + prompt);
    for (int i = 0; text.empty() && i < prompt; ++i)
      request.prompt.tokens.push_back(
          static_cast<TokenId>(uniform_at(next_id, static_cast<uint64_t>(i)) * packed->config().vocab_size));
    request.sampling.temperature = 0;
    request.stop.max_tokens = reply;
    request.stop.ignore_eos = true;
    ++next_id;
    return request;
  }
  std::unique_ptr<EngineCore> core_of(int batch, int max_drafts) {
    auto core = std::make_unique<EngineCore>(
        *executor, pool, tokenizer, kernels::row_kernels(),
        CoreOptions{.max_model_len = longest,
                    .scheduler = {.max_sequences = std::max(batch, 1),
                                  .max_rows = std::max(options.max_num_batched_tokens, batch),
                                  .max_draft_rows = kDraftRows,
                                  .prefix_caching = false},
                    .now_ns = monotonic_ns,
                    .max_drafts = max_drafts,
                    .text_lookup = options.speculate_from_text});
    if (max_drafts > 0 && !options.always_speculate) core->set_draft_costs(draft_costs);
    return core;
  }
  // Tokens a second of `batch` sequences after their prompts, or (reply 1) of the prompts themselves.
  double run(int batch, int prompt, int reply) { return run(*core_of(batch, 0), batch, prompt, reply); }
  double run(EngineCore& core, int batch, int prompt, int reply) {
    std::vector<GenerateEvent> events;
    const uint64_t before = core.load().generated_tokens;
    for (int i = 0; i < batch; ++i) core.add(request(prompt, reply), events);
    int64_t start = monotonic_ns();
    uint64_t counted_from = before;
    while (!core.idle()) {
      core.step(events);
      events.clear();
      const auto load = core.load();
      // Decode counts from where every sequence has its first token.
      if (reply > 1 && counted_from == before &&
          load.generated_tokens - before >= static_cast<uint64_t>(batch)) {
        start = monotonic_ns();
        counted_from = load.generated_tokens;
      }
    }
    const double seconds = static_cast<double>(monotonic_ns() - start) * 1e-9;
    const double tokens = reply > 1 ? static_cast<double>(core.load().generated_tokens - counted_from)
                                    : static_cast<double>(prompt) * batch;
    return tokens / seconds;
  }
  struct Rate {
    double median, min, max;
  };
  static Rate rate_of(std::vector<double> values) {
    std::ranges::sort(values);
    return {values[values.size() / 2], values.front(), values.back()};
  }
  Rate repeat(int batch, int prompt, int reply) {
    std::vector<double> rates;
    run(batch, prompt, reply);
    for (int i = 0; i < options.runs; ++i) rates.push_back(run(batch, prompt, reply));
    return rate_of(std::move(rates));
  }
  // With guesses and without, in turns on the same prompts. As in a server, what one reply taught of guesses'
  // worth is known in the next; the first pair of replies is not counted.
  std::string speculation(int batch) {
    std::vector<double> with, without, ratios;
    const auto guessing = core_of(batch, options.num_speculative_tokens), plainly = core_of(batch, 0);
    const int reply = options.decode + 1;
    for (int i = -1; i < options.runs; ++i) {
      const uint64_t first_id = next_id;
      const double plain = run(*plainly, batch, kTextPromptTokens, reply);
      next_id = first_id;
      const double guessed = run(*guessing, batch, kTextPromptTokens, reply);
      if (i < 0) continue;
      without.push_back(plain);
      with.push_back(guessed);
      ratios.push_back(guessed / plain);
    }
    const GroupLoad load = guessing->load();
    std::string accepted;
    for (const DraftCount& place : load.drafts)
      accepted += fmt::format("{}{:.3f}", accepted.empty() ? "" : ",",
                              static_cast<double>(place.accepted) / static_cast<double>(place.proposed));
    const Rate ratio = rate_of(ratios);
    return fmt::format(
        R"({{"name":"speculation","batch":{},"tok_s":{:.1f},"tok_s_without":{:.1f},"ratio":{:.3f},"ratio_min":{:.3f},)"
        R"("ratio_max":{:.3f},"accepted":[{}],"tokens_per_step":{:.2f},"runs":{}}})",
        batch, rate_of(with).median, rate_of(without).median, ratio.median, ratio.min, ratio.max, accepted,
        static_cast<double>(load.generated_tokens) / static_cast<double>(load.steps) / batch, options.runs);
  }
};

Expected<void> check(const BenchOptions& options, int64_t max_position) {
  const auto in_range = [](int64_t value, int64_t low, int64_t high, const char* name) -> Expected<void> {
    if (value >= low && value <= high) return {};
    return invalid(fmt::format("{} is {}, it must be between {} and {}", name, value, low, high), name);
  };
  for (const int tokens : options.prefill) MR_TRY(in_range(tokens, 1, max_position - 1, "prefill"));
  for (const int batch : options.batch) MR_TRY(in_range(batch, 1, kMaxBatch, "batch"));
  MR_TRY(in_range(options.decode, 1, max_position - kPromptTokens - 1, "decode"));
  MR_TRY(in_range(options.runs, 1, kMaxRuns, "runs"));
  return in_range(options.max_num_batched_tokens, 1, 1 << 16, "max_num_batched_tokens");
}

std::string number(double value, int digits) { return fmt::format("{:.{}f}", value, digits); }

}  // namespace

Expected<void> run_bench(std::shared_ptr<const model::PackedModel> model, const BenchOptions& options,
                         const std::function<void(std::string_view)>& sink) {
  MR_TRY(check(options, model->config().max_position));
  const int batch_most = options.batch.empty() ? 1 : *std::ranges::max_element(options.batch);
  const int prefill_most = options.prefill.empty() ? 1 : *std::ranges::max_element(options.prefill);
  const int64_t decode_len = kTextPromptTokens + options.decode + 1;
  const int64_t longest = std::max<int64_t>(prefill_most + 1, decode_len);
  const int64_t pages = std::max(Sequence::pages_for(longest), batch_most * Sequence::pages_for(decode_len));
  const Weights weights = count_weights(*model);
  const bool drafts = options.num_speculative_tokens > 0 && !options.speculation_text.empty();
  if (drafts && model->graph().mtp.empty())
    return invalid(
        fmt::format("{} has no MTP layer: there is no speculation to measure", model->config().name),
        "speculation_text");
  model->bring_into_memory(options.own_weights_at_most);
  Bench bench{.packed = model,
              .tokenizer = MR_TRY(model::Tokenizer::create(model->tokenizer_spec())),
              .options = options,
              .executor = MR_TRY(
                  Executor::create(model, {.cpus = options.cpus,
                                           .max_rows = std::max(options.max_num_batched_tokens, batch_most),
                                           .max_logit_rows = batch_most + 64 + kDraftRows,
                                           .max_positions = longest,
                                           .drafts = drafts})),
              .pool = MR_TRY(KvPool::create(pages, kv_shape_of(*model, drafts).page_bytes())),
              .longest = longest};

  const auto isa = kernels::active_isa();
  const auto peak = kernels::measure_machine_peak(options.cpus, options.peak_seconds, isa);
  sink(fmt::format(R"({{"name":"machine","cpu":{},"isa":"{}","threads":{},"int8_tops":{},"read_gb_s":{}}})",
                   json::serialize(json::string(cpu_model_name())), kernels::isa_name(isa),
                   options.cpus.size(), number(peak.int8_tops, 3), number(peak.read_gb_s, 2)));
  for (const int tokens : options.prefill) {
    const auto rate = bench.repeat(1, tokens, 1);
    sink(fmt::format(
        R"({{"name":"prefill","tokens":{},"tok_s":{},"pct_peak_int8":{},"tok_s_min":{},"tok_s_max":{},"runs":{}}})",
        tokens, number(rate.median, 1),
        number(100 * 2 * weights.token_weights * rate.median / (peak.int8_tops * 1e12), 2),
        number(rate.min, 1), number(rate.max, 1), options.runs));
  }
  for (const int batch : options.batch) {
    const auto rate = bench.repeat(batch, kPromptTokens, options.decode + 1);
    sink(fmt::format(
        R"({{"name":"decode","batch":{},"tok_s":{},"pct_read_bw":{},"pct_peak_int8":{},"tok_s_min":{},"tok_s_max":{},"runs":{}}})",
        batch, number(rate.median, 1),
        number(100 * weights.step_bytes_of(batch) * rate.median / batch / (peak.read_gb_s * 1e9), 2),
        number(
            100 * 2 * (weights.token_weights + weights.head_weights) * rate.median / (peak.int8_tops * 1e12),
            2),
        number(rate.min, 1), number(rate.max, 1), options.runs));
  }
  if (!drafts) return {};
  MR_TRY(bench.tokenizer->encode(options.speculation_text, {}, kMaxTextTokens, bench.text));
  if (std::ssize(bench.text) < 2 * kTextPromptTokens)
    return invalid(fmt::format("the text for speculation has {} tokens, {} are needed", bench.text.size(),
                               2 * kTextPromptTokens),
                   "speculation_text");
  bench.draft_costs = measure_draft_costs(*bench.executor, bench.pool,
                                          {.max_rows = bench.executor->max_rows(),
                                           .max_sequences = batch_most,
                                           .max_logit_rows = bench.executor->max_logit_rows(),
                                           .max_positions = bench.longest});
  for (const int batch : options.batch) sink(bench.speculation(batch));
  return {};
}

}  // namespace millrace::engine
