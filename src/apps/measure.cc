#include "apps/measure.h"

#include <fmt/core.h>

#include <boost/json.hpp>

#include "apps/progress.h"
#include "base/file.h"
#include "base/json.h"
#include "base/units.h"
#include "engine/bench.h"
#include "engine/eval.h"

namespace millrace::apps {
namespace {

double number(const boost::json::object& object, std::string_view key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_number() ? value->to_number<double>() : 0.0;
}

// A bench line for a person.
void print_line(std::string_view line) {
  const auto parsed = parse_json(line);
  if (!parsed || !parsed->is_object()) return;
  const auto& record = parsed->as_object();
  const auto& name = record.at("name").as_string();
  if (name == "machine") {
    fmt::print("{}\n{} threads, {}: {:.2f} TOPS INT8, {:.1f} GB/s reads (measured now)\n\n",
               std::string_view(record.at("cpu").as_string()), static_cast<int>(number(record, "threads")),
               std::string_view(record.at("isa").as_string()), number(record, "int8_tops"), number(record, "read_gb_s"));
  } else if (name == "prefill") {
    fmt::print("prefill of {:>6} tokens  {:>9.1f} tokens/s   {:5.1f} % of the INT8 peak\n",
               static_cast<int>(number(record, "tokens")), number(record, "tok_s"), number(record, "pct_peak_int8"));
  } else if (name == "decode") {
    fmt::print("decode, batch of {:>4}     {:>9.1f} tokens/s   {:5.1f} % of the memory reads\n",
               static_cast<int>(number(record, "batch")), number(record, "tok_s"), number(record, "pct_read_bw"));
  } else if (name == "speculation") {
    fmt::print("guessing, batch of {:>4}   {:>9.1f} tokens/s   {:5.2f} times without, {:.2f} tokens a step\n",
               static_cast<int>(number(record, "batch")), number(record, "tok_s"), number(record, "ratio"),
               number(record, "tokens_per_step"));
  }
  std::fflush(stdout);
}

constexpr size_t kMaxTextBytes = 256 * kMiB;

Expected<void> bench(const BenchFlags& flags) {
  const auto model = MR_TRY(open_model(flags.model));
  engine::BenchOptions options;
  options.cpus = engine_options(flags.engine).cpus;
  options.prefill = flags.prefill;
  options.decode = flags.decode;
  options.batch = flags.batch;
  options.runs = flags.repeat;
  options.max_num_batched_tokens = flags.engine.max_num_batched_tokens;
  options.num_speculative_tokens = flags.engine.num_speculative_tokens;
  options.always_speculate = flags.engine.always_speculate;
  options.speculate_from_text = flags.engine.speculate_from_text;
  options.own_weights_at_most = engine_options(flags.engine).own_weights_at_most();
  if (!flags.speculation_text.empty()) options.speculation_text = MR_TRY(read_file(flags.speculation_text, kMaxTextBytes));
  return engine::run_bench(model, options, [&](std::string_view line) {
    if (flags.json) {
      fmt::print("{}\n", line);
      std::fflush(stdout);
    } else {
      print_line(line);
    }
  });
}

Expected<engine::EvalResult> eval(const EvalFlags& flags) {
  const std::string text = MR_TRY(read_file(flags.text_file, kMaxTextBytes));
  const auto model = MR_TRY(open_model(flags.model));
  ModelFlags reference_flags = flags.model;
  reference_flags.dtype = flags.against;
  const auto reference = MR_TRY(open_model(reference_flags));
  if (reference->type() != model::PackType::float32)
    return invalid(fmt::format("{} is a packed file of INT8 weights: name the checkpoint, of which there is a float32 form",
                               flags.model.model));
  ProgressBar bar("evaluating");
  engine::EvalOptions options;
  options.window = flags.window;
  options.max_tokens = flags.max_tokens;
  options.cpus = engine_options(flags.engine).cpus;
  options.progress = [&](int64_t done, int64_t total) {
    bar.update(total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1.0, fmt::format("{} of {} tokens", done, total));
  };
  return engine::evaluate(model, reference, text, options);
}

}  // namespace

int run_bench_command(const BenchFlags& flags) {
  const auto done = bench(flags);
  return done ? 0 : report(done.error());
}

int run_eval_command(const EvalFlags& flags) {
  const auto result = eval(flags);
  if (!result) return report(result.error());
  const double change = 100 * (result->perplexity / result->reference_perplexity - 1);
  if (flags.json) {
    fmt::print("{}\n", boost::json::serialize(boost::json::object{{"tokens", result->tokens},
                                                                  {"perplexity", result->perplexity},
                                                                  {"reference_perplexity", result->reference_perplexity},
                                                                  {"perplexity_change_pct", change},
                                                                  {"kl_mean_nats", result->kl_mean},
                                                                  {"kl_median_nats", result->kl_median},
                                                                  {"kl_max_nats", result->kl_max},
                                                                  {"top1_agreement", result->top1_agreement}}));
    return 0;
  }
  fmt::print("tokens predicted      {}\n", result->tokens);
  fmt::print("perplexity            {:.4f}   ({} {:.4f}: {:+.2f} %)\n", result->perplexity, flags.against,
             result->reference_perplexity, change);
  fmt::print("KL({} || this)   mean {:.5f}, median {:.5f}, largest {:.3f} nats\n", flags.against, result->kl_mean,
             result->kl_median, result->kl_max);
  fmt::print("same likeliest token  {:.2f} %\n", 100 * result->top1_agreement);
  return 0;
}

}  // namespace millrace::apps
