// A checkpoint's weights as floats: rows of a tensor, and rows of a part, which may be some of a tensor's, in
// another order, or its columns.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "base/units.h"
#include "model/internal/checkpoint.h"
#include "model/internal/float_formats.h"

namespace millrace::model {
namespace {

constexpr int64_t kPieceBytes = 256 * 1024;  // of the file at a time: stays in a second-level cache

// Reads rows of one tensor, which lie between two given ones.
class RowReader {
 public:
  static Expected<RowReader> open(const SourceTensor& tensor, int64_t begin, int64_t end) {
    const int64_t row_bytes = static_cast<int64_t>(tensor.data.size()) / std::max<int64_t>(tensor.rows, 1);
    const auto at = [&](int64_t row) { return static_cast<uint64_t>(row * row_bytes); };
    RowReader reader(tensor, row_bytes, MR_TRY(SourceReader::open(tensor.data, at(begin), at(end))));
    if (tensor.read_once) reader.weights_.forget();
    if (tensor.fp8) {
      const auto row_of_factors = static_cast<uint64_t>(reader.factor_row_bytes());
      reader.factors_.emplace(
          MR_TRY(SourceReader::open(tensor.factors, static_cast<uint64_t>(begin / kFp8Block) * row_of_factors,
                                    static_cast<uint64_t>(ceil_div(end, kFp8Block)) * row_of_factors)));
    }
    return reader;
  }

  // Rows [begin, end) as floats; non-finite ones are refused.
  Expected<void> read(int64_t begin, int64_t end, float* out) {
    const int64_t columns = tensor_.columns, step = std::max<int64_t>(1, kPieceBytes / row_bytes_);
    for (int64_t row = begin; row < end; row += step) {
      const int64_t rows = std::min(step, end - row);
      const std::byte* bytes = MR_TRY(
          weights_.read(static_cast<uint64_t>(row * row_bytes_), static_cast<uint64_t>(rows * row_bytes_)));
      if (tensor_.fp8) {
        MR_TRY(read_fp8(bytes, row, row + rows, out));
      } else {
        gguf_dequantize(tensor_.type, bytes, 0, rows * columns, out);
      }
      MR_TRY(refuse_non_finite(out, row, rows));
      out += rows * columns;
    }
    return {};
  }

 private:
  RowReader(const SourceTensor& tensor, int64_t row_bytes, SourceReader weights)
      : tensor_(tensor), row_bytes_(std::max<int64_t>(row_bytes, 1)), weights_(std::move(weights)) {}

  int64_t factor_blocks() const { return ceil_div(tensor_.columns, kFp8Block); }
  int64_t factor_row_bytes() const { return factor_blocks() * ggml_block_bytes(tensor_.factor_type); }

  // e4m3 times the factor of its block: the product of two floats, as the format's own conversion computes
  // it.
  Expected<void> read_fp8(const std::byte* in, int64_t begin, int64_t end, float* out) {
    static const std::array<float, 256> value_of = [] {
      std::array<float, 256> table{};
      for (size_t i = 0; i < table.size(); ++i) table[i] = float_of_e4m3(static_cast<uint8_t>(i));
      return table;
    }();
    for (int64_t row = begin; row < end; ++row) {
      if (row / kFp8Block != factors_row_) MR_TRY(load_factors(row / kFp8Block));
      for (int64_t first = 0; first < tensor_.columns; first += kFp8Block) {
        const float factor = block_factors_[static_cast<size_t>(first / kFp8Block)];
        const int64_t count = std::min(kFp8Block, tensor_.columns - first);
        for (int64_t j = 0; j < count; ++j) out[j] = value_of[static_cast<size_t>(in[j])] * factor;
        in += count;
        out += count;
      }
    }
    return {};
  }

  Expected<void> load_factors(int64_t block_row) {
    const auto bytes = static_cast<uint64_t>(factor_row_bytes());
    block_factors_.resize(static_cast<size_t>(factor_blocks()));
    gguf_dequantize(tensor_.factor_type,
                    MR_TRY(factors_->read(static_cast<uint64_t>(block_row) * bytes, bytes)), 0,
                    factor_blocks(), block_factors_.data());
    factors_row_ = block_row;
    return {};
  }

  Expected<void> refuse_non_finite(const float* values, int64_t first_row, int64_t rows) {
    const int64_t columns = tensor_.columns, count = rows * columns;
    // x - x is 0 for finite x and NaN otherwise: one pass that the compiler can vectorise, then the culprit
    // if any.
    float poison = 0;
    for (int64_t i = 0; i < count; ++i) poison += values[i] - values[i];
    if (poison == 0) return {};
    for (int64_t i = 0; i < count; ++i) {
      if (std::isfinite(values[i])) continue;
      const int64_t row = first_row + i / columns, column = i % columns;
      std::string factor;
      if (tensor_.fp8) {
        MR_TRY(load_factors(row / kFp8Block));
        factor = fmt::format(" (its block's factor, in \"{}_scale_inv\", is {})", tensor_.name,
                             block_factors_[static_cast<size_t>(column / kFp8Block)]);
      }
      return fail(Code::data_loss,
                  fmt::format("tensor \"{}\" holds {} at row {}, column {}{}: the checkpoint is damaged",
                              tensor_.name, values[i], row, column, factor));
    }
    return {};
  }

  const SourceTensor& tensor_;
  const int64_t row_bytes_;
  SourceReader weights_;
  std::optional<SourceReader> factors_;
  std::vector<float> block_factors_;
  int64_t factors_row_ = -1;
};

// Where row `row` of a part stands among the view's rows in the file.
int64_t stored_row(const PairedRows& pairs, int64_t row) {
  const int64_t place = row % pairs.group - pairs.first;
  if (place < 0 || place >= pairs.count) return row;
  const int64_t half = pairs.count / 2;
  return row - place + 2 * (place % half) + place / half;
}
// Where row `row` of a view stands in its tensor.
int64_t tensor_row(const TensorView& view, int64_t row) {
  return view.first + (view.stride > 0 ? row / view.take * view.stride + row % view.take : row);
}

// A view whose part is its transpose: run r of `take` rows, [take][columns], is the part's rows [r * columns,
// ...).
Expected<void> read_transposed(const SourceTensor& tensor, const TensorView& view, int64_t begin, int64_t end,
                               float* out) {
  if (begin == end) return {};
  const auto first_of = [&](int64_t row) { return view.first + row / view.columns * view.stride; };
  auto reader = MR_TRY(RowReader::open(tensor, first_of(begin), first_of(end - 1) + view.take));
  std::vector<float> run(static_cast<size_t>(view.take * view.columns));
  for (int64_t row = begin; row < end;) {
    const int64_t index = row / view.columns, stop = std::min(end, (index + 1) * view.columns);
    const int64_t first = first_of(row);
    MR_TRY(reader.read(first, first + view.take, run.data()));
    for (; row < stop; ++row)
      for (int64_t j = 0; j < view.take; ++j)
        *out++ = run[static_cast<size_t>(j * view.columns + row - index * view.columns)];
  }
  return {};
}

}  // namespace

Expected<void> read_rows(const SourceTensor& tensor, int64_t begin, int64_t end, float* out) {
  auto reader = MR_TRY(RowReader::open(tensor, begin, end));
  return reader.read(begin, end, out);
}

Expected<std::vector<float>> read_vector(const SourceTensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.rows * tensor.columns));
  MR_TRY(read_rows(tensor, 0, tensor.rows, out.data()));
  return out;
}

Expected<void> read_part(const Checkpoint& checkpoint, const PlannedPart& part, int k, int64_t begin,
                         int64_t end, float* out) {
  const auto [tensor, view] = MR_TRY(checkpoint.find_part(part, k));
  if (view->transposed) return read_transposed(*tensor, *view, begin, end, out);
  const bool paired = part.pairs.group > 0 && (checkpoint.is_gguf || !part.pairs.gguf_only);
  const auto place = [&](int64_t row) {
    return tensor_row(*view, paired ? stored_row(part.pairs, row) : row);
  };
  if (begin == end) return {};
  int64_t lowest = place(begin), highest = lowest;
  for (int64_t row = begin; row < end; ++row) {
    lowest = std::min(lowest, place(row));
    highest = std::max(highest, place(row));
  }
  auto reader = MR_TRY(RowReader::open(*tensor, lowest, highest + 1));
  for (int64_t row = begin; row < end;) {  // a run of neighbours at a time
    const int64_t first = place(row);
    int64_t count = 1;
    while (row + count < end && place(row + count) == first + count) ++count;
    MR_TRY(reader.read(first, first + count, out + (row - begin) * k));
    row += count;
  }
  return {};
}

Expected<std::vector<float>> read_part_bias(const Checkpoint& checkpoint, const PlannedPart& part) {
  const auto stored = MR_TRY(read_vector(*MR_TRY(checkpoint.find(part.bias, 1, part.rows))));
  if (part.pairs.group == 0 || (part.pairs.gguf_only && !checkpoint.is_gguf)) return stored;
  std::vector<float> out(stored.size());
  for (size_t row = 0; row < out.size(); ++row)
    out[row] = stored[static_cast<size_t>(stored_row(part.pairs, static_cast<int64_t>(row)))];
  return out;
}

}  // namespace millrace::model
