// A checkpoint's weights as floats: rows of a tensor, and rows of a part, which may be some of a tensor's, in
// another order, or its columns.
#include <fmt/core.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "model/internal/checkpoint.h"
#include "model/internal/float_formats.h"

namespace millrace::model {
namespace {

// FP8 rows: e4m3 times the factor of its block. The product of two floats, as the format's own conversion
// computes it.
void read_fp8(const SourceTensor& tensor, int64_t begin, int64_t end, float* out) {
  static const std::array<float, 256> value_of = [] {
    std::array<float, 256> table{};
    for (size_t i = 0; i < table.size(); ++i) table[i] = float_of_e4m3(static_cast<uint8_t>(i));
    return table;
  }();
  const int64_t blocks = (tensor.columns + kFp8Block - 1) / kFp8Block;
  std::vector<float> factors(static_cast<size_t>(blocks));
  for (int64_t row = begin; row < end; ++row) {
    gguf_dequantize(tensor.factor_type, tensor.factors.data(), row / kFp8Block * blocks, blocks,
                    factors.data());
    const std::byte* in = tensor.data.data() + row * tensor.columns;
    for (int64_t j = 0; j < tensor.columns; ++j)
      *out++ = value_of[static_cast<size_t>(in[j])] * factors[static_cast<size_t>(j / kFp8Block)];
  }
}

float fp8_factor(const SourceTensor& tensor, int64_t row, int64_t column) {
  const int64_t blocks = (tensor.columns + kFp8Block - 1) / kFp8Block;
  float factor = 0;
  gguf_dequantize(tensor.factor_type, tensor.factors.data(), row / kFp8Block * blocks + column / kFp8Block, 1,
                  &factor);
  return factor;
}

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
  std::vector<float> run(static_cast<size_t>(view.take * view.columns));
  for (int64_t row = begin; row < end;) {
    const int64_t index = row / view.columns, stop = std::min(end, (index + 1) * view.columns);
    const int64_t first = view.first + index * view.stride;
    MR_TRY(read_rows(tensor, first, first + view.take, run.data()));
    release_rows(tensor, first, first + view.take);
    for (; row < stop; ++row)
      for (int64_t j = 0; j < view.take; ++j)
        *out++ = run[static_cast<size_t>(j * view.columns + row - index * view.columns)];
  }
  return {};
}

}  // namespace

Expected<void> read_rows(const SourceTensor& tensor, int64_t begin, int64_t end, float* out) {
  const int64_t columns = tensor.columns, count = (end - begin) * columns;
  if (tensor.fp8) {
    read_fp8(tensor, begin, end, out);
  } else {
    gguf_dequantize(tensor.type, tensor.data.data(), begin * columns, count, out);
  }
  // x - x is 0 for finite x and NaN otherwise: one pass that the compiler can vectorise, then the culprit if
  // any.
  float poison = 0;
  for (int64_t i = 0; i < count; ++i) poison += out[i] - out[i];
  if (poison == 0) return {};
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(out[i])) continue;
    const int64_t row = begin + i / columns, column = i % columns;
    std::string factor;
    if (tensor.fp8)
      factor = fmt::format(" (its block's factor, in \"{}_scale_inv\", is {})", tensor.name,
                           fp8_factor(tensor, row, column));
    return fail(Code::data_loss,
                fmt::format("tensor \"{}\" holds {} at row {}, column {}{}: the checkpoint is damaged",
                            tensor.name, out[i], row, column, factor));
  }
  return {};
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
  for (int64_t row = begin; row < end;) {  // a run of neighbours at a time
    const int64_t first = place(row);
    int64_t count = 1;
    while (row + count < end && place(row + count) == first + count) ++count;
    MR_TRY(read_rows(*tensor, first, first + count, out + (row - begin) * k));
    row += count;
  }
  // Rows that were turned around stay within one group, so what lies between the ends has been read.
  release_rows(*tensor, place(begin), place(end - 1) + 1);
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

void release_rows(const SourceTensor& tensor, int64_t first, int64_t last) {
  constexpr uintptr_t kPage = 4096;
  const int64_t row_bytes = static_cast<int64_t>(tensor.data.size()) / std::max<int64_t>(tensor.rows, 1);
  const auto at = [&](int64_t row) {
    return reinterpret_cast<uintptr_t>(tensor.data.data() + row * row_bytes);
  };
  const uintptr_t begin = (at(first) + kPage - 1) / kPage * kPage, end = at(last) / kPage * kPage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace millrace::model
