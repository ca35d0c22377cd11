#include "engine/calibrate.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <future>
#include <numeric>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/hash.h"
#include "base/units.h"
#include "base/utf8.h"
#include "engine/internal/executor.h"
#include "engine/internal/kv_pool.h"
#include "engine/internal/sequence.h"
#include "model/tokenizer.h"

namespace millrace::engine {
namespace {

// Rows of a step: so many logits are held, and each expert that they reach adds rows once.
constexpr int kChunk = 128;

// Knows matrices by their first tile, and hands their rows on: those of experts always, others while they are
// wanted.
class Collector final : public InputObserver {
 public:
  Collector(const model::PackedModel& model, model::CalibrationInputs& inputs) : inputs_(inputs) {
    add_modules(model, model.graph().modules);
    for (const model::MtpModule& mtp : model.graph().mtp) {
      add(model, mtp.eh);
      add_modules(model, mtp.modules);
    }
  }

  void rows(const void* weights, int n_begin, const int8_t* values, int64_t stride, const float* scale,
            int rows) override {
    const auto found = matrices_.find(weights);
    if (found == matrices_.end() || n_begin % found->second.channels_per_input != 0) return;
    const Matrix& matrix = found->second;
    if (!matrix.of_an_expert && !all_wanted_) return;
    if (matrix.is_head && drafting_) return;
    // The inputs keep the first failure, and whoever reads them is told.
    (void)inputs_.add(matrix.section, n_begin, matrix.width, values, stride, scale, rows);
  }

  // Between steps.
  void want_all(bool wanted) { all_wanted_ = wanted; }
  // The MTP layer's head is the model's, and is rounded for what the model itself hands it.
  void drafting(bool now) { drafting_ = now; }

 private:
  struct Matrix {
    std::string section;
    int width = 0, channels_per_input = 0;
    bool of_an_expert = false, is_head = false;
  };
  void add(const model::PackedModel& model, const void* first, int width, int channels_per_input) {
    matrices_[first] = {std::string(model.section_at(first)), width, channels_per_input};
  }
  void add_expert(const model::PackedModel& model, const model::Linear& linear) {
    add(model, linear);
    matrices_[linear.s8.tiles].of_an_expert = true;
  }
  void add(const model::PackedModel& model, const model::Linear& linear, int channels_per_input = 0) {
    if (linear.n == 0) return;
    add(model, linear.s8.tiles, linear.k, channels_per_input > 0 ? channels_per_input : INT32_MAX);
  }
  void add_modules(const model::PackedModel& model, std::span<const model::Module> modules) {
    const model::ModelConfig& config = model.config();
    for (const model::Module& module : modules) {
      if (const auto* attention = std::get_if<model::AttentionModule>(&module)) {
        add(model, attention->qkv);
        add(model, attention->o);
      } else if (const auto* mla = std::get_if<model::MlaModule>(&module)) {
        add(model, mla->in);
        add(model, mla->q_up);
        add(model, mla->k_up, config.mla.kv_lora_rank);
        add(model, mla->v_up, config.mla.value_head_dim);
        add(model, mla->o);
      } else if (const auto* ffn = std::get_if<model::FfnModule>(&module)) {
        add(model, ffn->gate_up);
        add(model, ffn->down);
      } else if (const auto* router = std::get_if<model::RouterModule>(&module)) {
        add(model, router->weight, config.hidden_size, INT32_MAX);
      } else if (const auto* expert = std::get_if<model::ExpertModule>(&module)) {
        add_expert(model, expert->gate_up);
        add_expert(model, expert->down);
      } else if (const auto* shared = std::get_if<model::SharedExpertModule>(&module)) {
        add(model, shared->gate_up);
        add(model, shared->down);
      } else if (const auto* head = std::get_if<model::HeadModule>(&module)) {
        add(model, head->head);
        matrices_[head->head.s8.tiles].is_head = true;
      }
    }
  }

  model::CalibrationInputs& inputs_;
  std::unordered_map<const void*, Matrix> matrices_;
  bool all_wanted_ = true, drafting_ = false;
};

int64_t window_of(const model::ModelConfig& config) {
  return std::min<int64_t>(kCalibrationWindow, config.max_position);
}

// One sequence from its beginning, all of whose rows go through every product, the head's included.
void read_window(Executor& executor, Collector& collector, std::byte* pool, const std::vector<int32_t>& pages,
                 std::span<const TokenId> tokens, bool drafts) {
  std::array<int32_t, kChunk> numbers;
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto length = static_cast<int64_t>(tokens.size());
  for (int64_t first = 0; first < length; first += kChunk) {
    const int rows = static_cast<int>(std::min<int64_t>(kChunk, length - first));
    const auto all = std::span<const int32_t>(numbers).first(static_cast<size_t>(rows));
    const StepSegment segment{pages.data(), first, 0, rows};
    executor.run(
        {tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(rows)), {&segment, 1}, all, all},
        pool);
    // The MTP layer joins a position with the token after it, which a window's last position has not.
    const int next = static_cast<int>(std::min<int64_t>(rows, length - first - 1));
    if (!drafts || next == 0) continue;
    const StepSegment joined{pages.data(), first, 0, next};
    const auto some = all.first(static_cast<size_t>(next));
    collector.drafting(true);
    executor.draft({.tokens = tokens.subspan(static_cast<size_t>(first) + 1, static_cast<size_t>(next)),
                    .segments = {&joined, 1},
                    .states = some,
                    .guess_rows = some},
                   pool);
    collector.drafting(false);
  }
}

}  // namespace

std::vector<std::string_view> calibration_windows(std::string_view text, int most) {
  constexpr size_t kBytesPerWindow = 2 * kKiB;
  constexpr size_t kBytesMax = size_t{64} * kCalibrationWindow;  // hardly a token is longer than 64 bytes
  const size_t count = std::clamp<size_t>(text.size() / kBytesPerWindow, 1, static_cast<size_t>(most));
  const auto begin_of = [&](size_t window) {  // not within a character
    size_t at = text.size() * window / count;
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
    return at;
  };
  std::vector<std::string_view> out;
  for (size_t i = 0; i < count; ++i) {
    const size_t begin = begin_of(i);
    const std::string_view window = text.substr(begin, std::min(begin_of(i + 1) - begin, kBytesMax));
    out.push_back(window.substr(0, utf8_complete_prefix(window)));
  }
  return out;
}

Expected<void> check_calibration_text(std::string_view text) {
  if (text.empty()) return invalid("the calibration text is empty: it has 0 bytes", "calibrate");
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_decode(text, at);
    if (!step.valid)
      return invalid(fmt::format("the calibration text is not UTF-8: byte {:#04x} at offset {} of {}",
                                 static_cast<unsigned char>(text[at]), at, text.size()),
                     "calibrate");
    at += step.length;
  }
  return {};
}

uint64_t calibration_digest(std::string_view text) {
  return hash64(text, hash64(fmt::format("{} {} {} {}", model::kCalibrationVersion, kCalibrationWindow,
                                         kCalibrationWindows, kCalibrationWindowsMixture)));
}

namespace {

// The tokens that are read of each window of the text.
Expected<std::vector<std::vector<TokenId>>> tokens_to_read(std::string_view text,
                                                           const model::TokenizerSpec& spec,
                                                           const model::ModelConfig& config) {
  MR_TRY(check_calibration_text(text));
  const auto tokenizer = MR_TRY(model::Tokenizer::create(spec));
  const int64_t window = window_of(config);
  std::vector<std::vector<TokenId>> windows;
  int64_t here = 0, read = 0;
  const int most = config.moe.used() ? kCalibrationWindowsMixture : kCalibrationWindows;
  for (const std::string_view piece : calibration_windows(text, most)) {
    std::vector<TokenId>& tokens = windows.emplace_back();
    MR_TRY(tokenizer->encode(piece, {.add_special = false}, 0, tokens));
    here += static_cast<int64_t>(tokens.size());
    if (std::cmp_greater(tokens.size(), window)) tokens.resize(static_cast<size_t>(window));
    read += static_cast<int64_t>(tokens.size());
  }
  if (read >= kCalibrationTokensMin) return windows;
  std::string message = fmt::format("the calibration text has {} tokens", here);
  if (read < here)
    message += fmt::format(", of which a model of {} positions would read {}", config.max_position, read);
  return invalid(fmt::format("{}; at least {} are needed", message, kCalibrationTokensMin), "calibrate");
}

Expected<std::unique_ptr<model::CalibrationInputs>> gather(std::shared_ptr<const model::PackedModel> model,
                                                           std::string_view text,
                                                           const std::filesystem::path& folder,
                                                           const CalibrateOptions& options) {
  if (model->type() != model::PackType::int8)
    return invalid("calibration reads the text with a model that is packed as INT8");
  const auto windows = MR_TRY(tokens_to_read(text, model->tokenizer_spec(), model->config()));
  int64_t total = 0;
  for (const auto& tokens : windows) total += static_cast<int64_t>(tokens.size());
  auto inputs = MR_TRY(model::CalibrationInputs::create(
      folder, hash64(fmt::format("{}", model->fingerprint()), calibration_digest(text))));

  const bool drafts = !model->graph().mtp.empty();
  Collector collector(*model, *inputs);
  auto executor = MR_TRY(Executor::create(model, {.cpus = options.cpus,
                                                  .max_rows = kChunk,
                                                  .max_logit_rows = kChunk,
                                                  .max_positions = window_of(model->config()),
                                                  .column_rows_max = -1,
                                                  .drafts = drafts,
                                                  .observer = &collector}));
  const int64_t pages = Sequence::pages_for(window_of(model->config()));
  KvPool pool = MR_TRY(KvPool::create(pages, kv_shape_of(*model, drafts).page_bytes()));
  std::vector<int32_t> page_numbers(static_cast<size_t>(pages));
  for (int32_t& page : page_numbers) page = pool.allocate();
  // What every token goes through has inputs enough in kCalibrationWindows of them.
  const auto in_share = [&](size_t i) {  // at even distances, kCalibrationWindows of them
    return windows.size() <= kCalibrationWindows || i == 0 ||
           i * kCalibrationWindows / windows.size() != (i - 1) * kCalibrationWindows / windows.size();
  };
  int64_t done = 0;
  for (size_t i = 0; i < windows.size(); ++i) {
    collector.want_all(in_share(i));
    read_window(*executor, collector, pool.base(), page_numbers, windows[i], drafts);
    MR_TRY(inputs->status());
    done += static_cast<int64_t>(windows[i].size());
    if (options.progress) options.progress(done, total);
  }
  return inputs;
}

}  // namespace

Expected<void> check_calibration_tokens(std::string_view text, const model::TokenizerSpec& tokenizer,
                                        const model::ModelConfig& config) {
  MR_TRY(tokens_to_read(text, tokenizer, config));
  return {};
}

// On a thread of its own: a team pins whoever calls it, and the caller goes on to pack with all cores.
Expected<std::unique_ptr<model::CalibrationInputs>> gather_inputs(
    std::shared_ptr<const model::PackedModel> model, std::string_view text,
    const std::filesystem::path& folder, const CalibrateOptions& options) {
  return std::async(std::launch::async,
                    [&, model = std::move(model)]() mutable {
                      return gather(std::move(model), text, folder, options);
                    })
      .get();
}

}  // namespace millrace::engine
