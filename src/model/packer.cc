// Rows of weights on their way from the checkpoint to the packed file.
#include "model/internal/packer.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/units.h"
#include "kernels/gemm_s8.h"
#include "model/internal/float_formats.h"
#include "model/internal/rotate.h"

namespace millrace::model {
namespace {

// 16 MiB of floats a thread, unless a Hadamard block over rows needs more.
constexpr int64_t kJobFloats = int64_t{4} << 20;
constexpr int64_t kJobRows = 512;
constexpr uint64_t kJobOverhead = 2 * kMiB;  // pieces of files, gains, what mixing needs

template <class T>
std::span<const std::byte> bytes_of(const T* data, int64_t count) {
  return {reinterpret_cast<const std::byte*>(data), static_cast<size_t>(count) * sizeof(T)};
}

int64_t job_rows(int64_t columns, int64_t multiple) {
  const int64_t rows = std::min<int64_t>(kJobFloats / columns, kJobRows);
  return std::max(multiple, rows / multiple * multiple);  // a mixed stream's multiple may be above kJobRows
}

}  // namespace

void PackLayout::add(const std::string& name, uint64_t size) {
  index.emplace(name, sections.size());
  sections.push_back({.name = name, .offset = end, .size = size});
  end = static_cast<uint64_t>(round_up(static_cast<int64_t>(end + size), kSectionAlignment));
}

std::vector<PackJob> Packer::jobs() {
  each_weight(plan_, *this);
  return std::move(jobs_);
}

void Packer::embed(const PlannedEmbed& m) {
  const Section& section = layout_.at(m.section);
  const uint64_t row_bytes = static_cast<uint64_t>(m.width) * (int8() ? sizeof(uint16_t) : sizeof(float));
  const int64_t step = job_rows(m.width, 16);
  for (int64_t begin = 0; begin < m.vocab; begin += step) {
    const int64_t end = std::min<int64_t>(m.vocab, begin + step);
    const auto rows = static_cast<uint64_t>(end - begin);
    const ByteRange place{section.offset + static_cast<uint64_t>(begin) * row_bytes, rows * row_bytes};
    jobs_.push_back({.section = layout_.index.at(m.section),
                     .places = {place},
                     .cost = place.size,
                     .scratch_bytes = rows * static_cast<uint64_t>(m.width) * 6 + kJobOverhead,
                     .run = [this, &m, begin, end](PackScratch& scratch, JobOutput& out) {
                       return write_embedding(m, begin, end, scratch, out);
                     }});
  }
}

void Packer::gain(const PlannedGain& g) {
  if (g.folded && int8()) return;
  const Section& section = layout_.at(g.section);
  jobs_.push_back({.section = layout_.index.at(g.section),
                   .places = {{section.offset, section.size}},
                   .cost = section.size,
                   .scratch_bytes = kJobOverhead,
                   .run = [this, &g](PackScratch&, JobOutput& out) -> Expected<void> {
                     const auto values = MR_TRY(read_vector(*MR_TRY(checkpoint_.find(g.tensor, 1, g.width))));
                     return out.put(bytes_of(values.data(), g.width));
                   }});
}

void Packer::linear(const PlannedLinear& l) {
  if (l.bias) {
    const LinearLayout layout(stored_type(l), l.rows(), l.k, true);
    const auto size = static_cast<uint64_t>(l.rows()) * sizeof(float);
    jobs_.push_back({.section = layout_.index.at(l.section),
                     .places = {{layout_.at(l.section).offset + layout.bias, size}},
                     .cost = size,
                     .scratch_bytes = kJobOverhead,
                     .run = [this, &l](PackScratch&, JobOutput& out) { return write_bias(l, out); }});
  }
  // A job writes whole tiles of 16 channels and rotates whole blocks of rows. Both fall inside one part,
  // unless a part of a tiny model has an odd height: then one job does it all.
  const bool tiles_stay_in_parts = std::all_of(l.parts.begin(), l.parts.end() - 1, [](const PlannedPart& p) {
    return p.rows % kernels::kGemmNBlock == 0;
  });
  if (!tiles_stay_in_parts) return add_rows(l, 0, l.rows());
  int64_t first = 0;
  for (const PlannedPart& part : l.parts) {
    int64_t multiple =
        std::lcm(kernels::kGemmNBlock, part.rotate_group > 0 ? part.rotate_group : part.rotate_rows.period());
    if (part.row_gain_width > 0) multiple = std::lcm(multiple, part.row_gain_width);
    const int64_t step = job_rows(l.k, multiple);
    for (int64_t row = 0; row < part.rows; row += step)
      add_rows(l, first + row, first + std::min<int64_t>(part.rows, row + step));
    first += part.rows;
  }
}

// Channels are quantised one by one and tiles hold 16 whole ones, so these rows packed as a matrix of their
// own are the bytes that the whole matrix has here.
void Packer::add_rows(const PlannedLinear& l, int64_t begin, int64_t end) {
  const uint64_t at = layout_.at(l.section).offset, first = static_cast<uint64_t>(begin),
                 floats = static_cast<uint64_t>((end - begin) * l.k);
  PackJob job{.section = layout_.index.at(l.section),
              .places = {},
              .run = [this, &l, begin, end](PackScratch& scratch, JobOutput& out) {
                return write_rows(l, begin, end, scratch, out);
              }};
  if (stored_type(l) == PackType::float32) {
    job.places = {{at + first * static_cast<uint64_t>(l.k) * sizeof(float), floats * sizeof(float)}};
  } else {
    const LinearLayout layout(PackType::int8, l.rows(), l.k, l.bias);
    const auto channels = static_cast<uint64_t>(kernels::padded_n(end - begin));
    job.places = {{at + first * static_cast<uint64_t>(kernels::padded_k(l.k)),
                   kernels::weights_s8_tile_bytes(end - begin, l.k)},
                  {at + layout.scale + first * sizeof(float), channels * sizeof(float)},
                  {at + layout.sum + first * sizeof(int32_t), channels * sizeof(int32_t)}};
  }
  for (const ByteRange& place : job.places) job.cost += place.size;
  job.scratch_bytes = floats * sizeof(float) + job.cost + kJobOverhead;
  if (feedback_ && stored_type(l) == PackType::int8) {
    // What it aims at, and the bytes before they are tiles.
    job.scratch_bytes += floats * (sizeof(float) + 1) + feedback_->bytes(l);
    shared_bytes_ = std::max(shared_bytes_, feedback_->shared_bytes(l));
  }
  jobs_.push_back(std::move(job));
}

Expected<void> Packer::write_embedding(const PlannedEmbed& m, int64_t begin, int64_t end,
                                       PackScratch& scratch, JobOutput& out) const {
  const SourceTensor& tensor = *MR_TRY(checkpoint_.find(m.tensor, m.vocab, m.width));
  const int64_t count = (end - begin) * m.width;
  scratch.floats.resize(static_cast<size_t>(count));
  MR_TRY(read_rows(tensor, begin, end, scratch.floats.data()));
  if (!int8()) return out.put(bytes_of(scratch.floats.data(), count));
  rotate_columns(scratch.floats.data(), end - begin, m.width, m.rotate_columns);
  scratch.bytes.resize(static_cast<size_t>(count) * sizeof(uint16_t));
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = bf16_of_float(scratch.floats[static_cast<size_t>(i)]);
    std::memcpy(scratch.bytes.data() + i * 2, &bits, sizeof bits);
  }
  return out.put(scratch.bytes);
}

Expected<void> Packer::write_bias(const PlannedLinear& l, JobOutput& out) const {
  std::vector<float> all;
  for (const PlannedPart& part : l.parts) {
    auto bias = MR_TRY(read_part_bias(checkpoint_, part));
    if (int8()) MR_TRY(turn_rows(part, bias.data(), part.rows, 1));
    all.insert(all.end(), bias.begin(), bias.end());
  }
  return out.put(bytes_of(all.data(), l.rows()));
}

// The folds of a part's rows. They start at a multiple of what repeats: a gain's width, a rotation's period.
Expected<void> Packer::turn_rows(const PlannedPart& part, float* w, int64_t rows, int64_t columns) const {
  if (part.row_gain_width > 0) {
    const auto gain = MR_TRY(read_vector(*MR_TRY(checkpoint_.find(part.row_gain, 1, part.row_gain_width))));
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < columns; ++j)
        w[row * columns + j] *= gain[static_cast<size_t>(row % part.row_gain_width)];
  }
  if (part.rotate_group == 0) {
    rotate_rows(w, rows, columns, part.rotate_rows);
  } else {
    for (int64_t row = 0; row < rows; row += part.rotate_group)
      rotate_rows(w + row * columns, part.rotate_count, columns, part.rotate_rows);
  }
  return {};
}

// Rows [begin, end) of the stacked matrix, folded and rotated on the INT8 path.
Expected<void> Packer::load_rows(const PlannedLinear& l, int64_t begin, int64_t end, float* out) const {
  int64_t first = 0;  // of the part
  for (const PlannedPart& part : l.parts) {
    const int64_t from = std::max(begin, first), to = std::min<int64_t>(end, first + part.rows);
    if (from < to) {
      float* rows = out + (from - begin) * l.k;
      MR_TRY(read_part(checkpoint_, part, l.k, from - first, to - first, rows));
      if (int8()) MR_TRY(turn_rows(part, rows, to - from, l.k));
    }
    first += part.rows;
  }
  if (!int8()) return {};
  if (!l.folded_gain.hugging_face.empty()) {
    const bool joined = !l.second_gain.hugging_face.empty();
    const int width = joined ? l.k / 2 : l.k;
    auto gain = MR_TRY(read_vector(*MR_TRY(checkpoint_.find(l.folded_gain, 1, width))));
    if (joined) {
      const auto second = MR_TRY(read_vector(*MR_TRY(checkpoint_.find(l.second_gain, 1, width))));
      gain.insert(gain.end(), second.begin(), second.end());
    }
    scale_columns(out, end - begin, l.k, gain.data());
  }
  rotate_columns(out, end - begin, l.k, l.rotate_columns);
  return {};
}

// Rows [begin, end) in scratch.floats to scratch.rounded and scratch.scale, each for the inputs that it
// reads.
Expected<void> Packer::round_rows(const PlannedLinear& l, int64_t begin, int64_t end,
                                  PackScratch& scratch) const {
  scratch.rounded.resize(static_cast<size_t>((end - begin) * l.k));
  std::fill(scratch.scale.begin(), scratch.scale.end(), 0.0f);
  const int64_t group = l.rows_per_input > 0 ? l.rows_per_input : l.rows();
  for (int64_t row = begin; row < end;) {
    const int64_t first = row / group * group, stop = std::min(end, first + group);
    const auto feedback = MR_TRY(feedback_->get(l, static_cast<int>(first)));
    const auto at = static_cast<size_t>(row - begin);
    model::round_rows(scratch.floats.data() + at * static_cast<size_t>(l.k), static_cast<int>(stop - row),
                      l.k, *feedback, scratch.rounded.data() + at * static_cast<size_t>(l.k),
                      scratch.scale.data() + at, scratch.rounding);
    row = stop;
  }
  return {};
}

Expected<void> Packer::write_rows(const PlannedLinear& l, int64_t begin, int64_t end, PackScratch& scratch,
                                  JobOutput& out) const {
  const int64_t rows = end - begin;
  scratch.floats.resize(static_cast<size_t>(rows * l.k));
  MR_TRY(load_rows(l, begin, end, scratch.floats.data()));
  if (stored_type(l) == PackType::float32) return out.put(bytes_of(scratch.floats.data(), rows * l.k));
  const int64_t channels = kernels::padded_n(rows);
  scratch.bytes.resize(kernels::weights_s8_tile_bytes(rows, l.k));
  scratch.scale.resize(static_cast<size_t>(channels));
  scratch.sum.resize(static_cast<size_t>(channels));
  if (feedback_) {
    MR_TRY(round_rows(l, begin, end, scratch));
    kernels::tile_s8(scratch.rounded.data(), l.k, static_cast<int>(rows), l.k,
                     reinterpret_cast<int8_t*>(scratch.bytes.data()), scratch.sum.data());
  } else {
    kernels::pack_s8(scratch.floats.data(), l.k, static_cast<int>(rows), l.k, 0, static_cast<int>(rows),
                     reinterpret_cast<int8_t*>(scratch.bytes.data()), scratch.scale.data(),
                     scratch.sum.data());
  }
  MR_TRY(out.put(scratch.bytes));
  MR_TRY(out.put(bytes_of(scratch.scale.data(), channels)));
  return out.put(bytes_of(scratch.sum.data(), channels));
}

}  // namespace millrace::model
