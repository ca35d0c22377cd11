// The first half of a calibrated packing: an INT8 model reads a text, and what enters its products is kept.
// The second half is model::pack_checkpoint() with PackOptions::calibration.
//
// What is read is spread over the whole text: windows of kCalibrationWindow tokens at most, each a sequence
// of its own (calibration_windows). Where the model has MTP layers the first one reads along, so that its
// products have inputs too.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/packed_model.h"

namespace millrace::engine {

inline constexpr int kCalibrationWindow = 512;  // tokens
inline constexpr int kCalibrationWindows = 16;
// With a mixture of experts, each of which sees some of the tokens only. What sees them all is observed in
// kCalibrationWindows of the windows.
inline constexpr int kCalibrationWindowsMixture = 64;
// Fewer tokens read than this say too little of a model's inputs, and are refused.
inline constexpr int64_t kCalibrationTokensMin = 512;

// Refuses what is empty or not UTF-8, with the place.
Expected<void> check_calibration_text(std::string_view text);
// The same, and texts of which a model with this tokenizer and config would read too little.
Expected<void> check_calibration_tokens(std::string_view text, const model::TokenizerSpec& tokenizer,
                                        const model::ModelConfig& config);

// Of the text and of everything else, but for the checkpoint, that decides what a calibrated packing becomes.
uint64_t calibration_digest(std::string_view text);

// The text of each window: one for every 2 KiB (which is some 512 tokens), `most` at most, at even distances.
// A window ends where the next one begins, and at the latest after what 512 tokens could be.
std::vector<std::string_view> calibration_windows(std::string_view text, int most);

struct CalibrateOptions {
  std::vector<int> cpus = {-1};                                             // one thread each
  std::function<void(int64_t tokens_done, int64_t tokens_total)> progress;  // after each window; may be empty
};

// `model` is packed as INT8, without calibration. What is kept goes to a file without a name in `folder`.
// Model and text alone decide it, not the threads.
Expected<std::unique_ptr<model::CalibrationInputs>> gather_inputs(
    std::shared_ptr<const model::PackedModel> model, std::string_view text,
    const std::filesystem::path& folder, const CalibrateOptions& options);

}  // namespace millrace::engine
