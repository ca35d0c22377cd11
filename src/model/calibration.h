// What a packing learns from a text: the INT8 rows that entered each matrix while a model of the same
// checkpoint, packed without calibration, read it. The engine gathers them (engine/calibrate.h),
// pack_checkpoint() rounds weights for them (PackOptions::calibration);
// docs/decisions/0008-calibrated-rounding.md says how and why.
//
// Rows live in a file without a name, so that little is held in memory (16 bytes for each call of add(), and
// less than as much again for lists to grow in) and a killed process leaves nothing behind. A token takes a
// byte for each value that entered a product: 0.1 MB with SmolLM2, 12 MB with DeepSeek-V3. add() is
// thread-safe; the others are too, once nothing is added any more.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace millrace::model {

// Of how inputs become weights: raised with any change of that, so that a calibrated file has another name.
inline constexpr uint32_t kCalibrationVersion = 2;

struct CalibrationRows {  // of one matrix
  int width = 0;
  std::vector<uint64_t> place;  // of each row in the file
  std::vector<float> scale;     // a value is its INT8 times this
  int64_t count() const { return static_cast<int64_t>(place.size()); }
};

class CalibrationInputs {
 public:
  // `folder` gives the disk space. `digest` stands for all that decides the rows: model, text, settings.
  static Expected<std::unique_ptr<CalibrationInputs>> create(const std::filesystem::path& folder,
                                                             uint64_t digest);
  virtual ~CalibrationInputs() = default;

  // Rows that a section's output channels from `first_channel` on have read: 0, except where heads read
  // inputs of their own. Rows whose scale is no finite number are dropped. The first failure is kept, and
  // returned by every later call here and by find().
  virtual Expected<void> add(std::string_view section, int first_channel, int width, const int8_t* values,
                             int64_t stride, const float* scale, int rows) = 0;

  virtual Expected<void> status() const = 0;  // that failure, or none
  virtual uint64_t memory_bytes() const = 0;  // held while rows are read

  virtual int64_t rows(std::string_view section, int first_channel) const = 0;
  // In an order that depends on the rows alone, and is as good as random: by the hash of their values. No
  // rows: width 0.
  virtual Expected<CalibrationRows> find(std::string_view section, int first_channel) const = 0;
  // Columns [begin, begin + columns) of `count` rows from `first` on, in floats: out[column * count + row].
  virtual Expected<void> read(const CalibrationRows& rows, int64_t first, int count, int begin, int columns,
                              float* out) const = 0;
  virtual uint64_t digest() const = 0;
};

}  // namespace millrace::model
