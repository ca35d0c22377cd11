// Checkpoint -> packed file. The plan gives the sections and their sizes; jobs of some hundred rows each turn
// weights into them on all threads, each writing its own place of the file; then checksums, directory,
// header, rename.
#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <numeric>
#include <thread>

#include "base/file.h"
#include "base/hash.h"
#include "base/units.h"
#include "kernels/gemm_s8.h"
#include "model/internal/checkpoint.h"
#include "model/internal/float_formats.h"
#include "model/internal/output_file.h"
#include "model/internal/packed_layout.h"
#include "model/internal/rotate.h"
#include "model/kv_shape.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

constexpr int kMaxThreads = 64;
constexpr int64_t kJobFloats = int64_t{4}
                               << 20;  // 16 MiB a thread, unless a Hadamard block over rows needs more
constexpr int64_t kJobRows = 512;

struct Scratch {  // one thread's buffers, kept from job to job
  std::vector<float> floats;
  std::vector<std::byte> bytes;
  std::vector<float> scale;
  std::vector<int32_t> sum;
};

struct Job {
  std::string section;
  int64_t cost = 0;  // elements, for progress and order
  std::function<Expected<void>(Scratch&)> run;
};

template <class T>
std::span<const std::byte> bytes_of(const T* data, int64_t count) {
  return {reinterpret_cast<const std::byte*>(data), static_cast<size_t>(count) * sizeof(T)};
}

class Packer {
 public:
  Packer(const Checkpoint& checkpoint, const Plan& plan, PackType type, OutputFile& file,
         const std::map<std::string, uint64_t>& offsets)
      : checkpoint_(checkpoint), plan_(plan), type_(type), file_(file), offsets_(offsets) {}

  std::vector<Job> jobs() {
    each_weight(plan_, *this);
    return std::move(jobs_);
  }

  // Called by each_weight().
  void embed(const PlannedEmbed& m);
  void gain(const PlannedGain& g);
  void linear(const PlannedLinear& l);
  void experts(const PlannedLinear& l, int count) {
    for (int e = 0; e < count; ++e) linear(of_experts_.emplace_back(l.of_expert(e)));
  }
  void head(const PlannedHead& m) {
    if (int8() || !m.shares_matrix) linear(m.head);
  }

 private:
  bool int8() const { return type_ == PackType::int8; }
  PackType stored_type(const PlannedLinear& l) const { return l.always_float ? PackType::float32 : type_; }

  Expected<void> write_embedding(const PlannedEmbed& m, int64_t begin, int64_t end, Scratch& scratch);
  Expected<void> write_bias(const PlannedLinear& l);
  Expected<void> write_rows(const PlannedLinear& l, int64_t begin, int64_t end, Scratch& scratch);
  Expected<void> turn_rows(const PlannedPart& part, float* w, int64_t rows, int64_t columns) const;
  Expected<void> load_rows(const PlannedLinear& l, int64_t begin, int64_t end, float* out);

  const Checkpoint& checkpoint_;
  const Plan& plan_;
  const PackType type_;
  OutputFile& file_;
  const std::map<std::string, uint64_t>& offsets_;
  std::deque<PlannedLinear> of_experts_;  // jobs refer to them
  std::vector<Job> jobs_;
};

int64_t job_rows(int64_t columns, int64_t multiple) {
  const int64_t rows = std::min<int64_t>(kJobFloats / columns, kJobRows);
  return std::max(multiple, rows / multiple * multiple);  // a mixed stream's multiple may be above kJobRows
}

void Packer::embed(const PlannedEmbed& m) {
  const int64_t step = job_rows(m.width, 16);
  for (int64_t begin = 0; begin < m.vocab; begin += step) {
    const int64_t end = std::min<int64_t>(m.vocab, begin + step);
    jobs_.push_back({m.section, (end - begin) * m.width, [this, &m, begin, end](Scratch& scratch) {
                       return write_embedding(m, begin, end, scratch);
                     }});
  }
}

void Packer::gain(const PlannedGain& g) {
  if (g.folded && int8()) return;
  jobs_.push_back({g.section, g.width, [this, &g](Scratch&) -> Expected<void> {
                     const auto values = MR_TRY(read_vector(*MR_TRY(checkpoint_.find(g.tensor, 1, g.width))));
                     return file_.write_at(offsets_.at(g.section), bytes_of(values.data(), g.width));
                   }});
}

void Packer::linear(const PlannedLinear& l) {
  if (l.bias) jobs_.push_back({l.section, l.rows(), [this, &l](Scratch&) { return write_bias(l); }});
  const auto add_rows = [&](int64_t begin, int64_t end) {
    jobs_.push_back({l.section, (end - begin) * l.k, [this, &l, begin, end](Scratch& scratch) {
                       return write_rows(l, begin, end, scratch);
                     }});
  };
  // A job writes whole tiles of 16 channels and rotates whole blocks of rows. Both fall inside one part,
  // unless a part of a tiny model has an odd height: then one job does it all.
  const bool tiles_stay_in_parts = std::all_of(l.parts.begin(), l.parts.end() - 1, [](const PlannedPart& p) {
    return p.rows % kernels::kGemmNBlock == 0;
  });
  if (!tiles_stay_in_parts) return add_rows(0, l.rows());
  int64_t first = 0;
  for (const PlannedPart& part : l.parts) {
    int64_t multiple =
        std::lcm(kernels::kGemmNBlock, part.rotate_group > 0 ? part.rotate_group : part.rotate_rows.period());
    if (part.row_gain_width > 0) multiple = std::lcm(multiple, part.row_gain_width);
    const int64_t step = job_rows(l.k, multiple);
    for (int64_t row = 0; row < part.rows; row += step)
      add_rows(first + row, first + std::min<int64_t>(part.rows, row + step));
    first += part.rows;
  }
}

Expected<void> Packer::write_embedding(const PlannedEmbed& m, int64_t begin, int64_t end, Scratch& scratch) {
  const SourceTensor& tensor = *MR_TRY(checkpoint_.find(m.tensor, m.vocab, m.width));
  const int64_t count = (end - begin) * m.width;
  scratch.floats.resize(static_cast<size_t>(count));
  MR_TRY(read_rows(tensor, begin, end, scratch.floats.data()));
  release_rows(tensor, begin, end);
  const uint64_t at = offsets_.at(m.section), first = static_cast<uint64_t>(begin * m.width);
  if (!int8()) return file_.write_at(at + first * sizeof(float), bytes_of(scratch.floats.data(), count));
  rotate_columns(scratch.floats.data(), end - begin, m.width, m.rotate_columns);
  scratch.bytes.resize(static_cast<size_t>(count) * sizeof(uint16_t));
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = bf16_of_float(scratch.floats[static_cast<size_t>(i)]);
    std::memcpy(scratch.bytes.data() + i * 2, &bits, sizeof bits);
  }
  return file_.write_at(at + first * sizeof(uint16_t), scratch.bytes);
}

Expected<void> Packer::write_bias(const PlannedLinear& l) {
  std::vector<float> all;
  for (const PlannedPart& part : l.parts) {
    auto bias = MR_TRY(read_part_bias(checkpoint_, part));
    if (int8()) MR_TRY(turn_rows(part, bias.data(), part.rows, 1));
    all.insert(all.end(), bias.begin(), bias.end());
  }
  const LinearLayout layout(stored_type(l), l.rows(), l.k, true);
  return file_.write_at(offsets_.at(l.section) + layout.bias, bytes_of(all.data(), l.rows()));
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
Expected<void> Packer::load_rows(const PlannedLinear& l, int64_t begin, int64_t end, float* out) {
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

Expected<void> Packer::write_rows(const PlannedLinear& l, int64_t begin, int64_t end, Scratch& scratch) {
  const int64_t rows = end - begin;
  scratch.floats.resize(static_cast<size_t>(rows * l.k));
  MR_TRY(load_rows(l, begin, end, scratch.floats.data()));
  const uint64_t at = offsets_.at(l.section);
  if (stored_type(l) == PackType::float32)
    return file_.write_at(at + static_cast<uint64_t>(begin * l.k) * sizeof(float),
                          bytes_of(scratch.floats.data(), rows * l.k));
  // Channels are quantised one by one and tiles hold 16 whole ones, so these rows packed as a matrix of their
  // own are the bytes that the whole matrix has here.
  const int64_t channels = kernels::padded_n(rows);
  scratch.bytes.resize(kernels::weights_s8_tile_bytes(rows, l.k));
  scratch.scale.resize(static_cast<size_t>(channels));
  scratch.sum.resize(static_cast<size_t>(channels));
  kernels::pack_s8(scratch.floats.data(), l.k, static_cast<int>(rows), l.k, 0, static_cast<int>(rows),
                   reinterpret_cast<int8_t*>(scratch.bytes.data()), scratch.scale.data(), scratch.sum.data());
  const LinearLayout layout(type_, l.rows(), l.k, l.bias);
  const auto first = static_cast<uint64_t>(begin);
  MR_TRY(file_.write_at(at + first * static_cast<uint64_t>(kernels::padded_k(l.k)), scratch.bytes));
  MR_TRY(file_.write_at(at + layout.scale + first * sizeof(float), bytes_of(scratch.scale.data(), channels)));
  return file_.write_at(at + layout.sum + first * sizeof(int32_t), bytes_of(scratch.sum.data(), channels));
}

// Runs all jobs on `threads` threads; the first error stops the rest.
Expected<void> run_jobs(const std::vector<Job>& jobs, int threads, const Progress& progress) {
  int64_t total = 0;
  for (const Job& job : jobs) total += job.cost;
  std::atomic<size_t> next{0};
  std::mutex mutex;  // guards done, first_error and calls of progress
  int64_t done = 0;
  Expected<void> first_error;
  std::atomic<bool> stop{false};
  const auto work = [&] {
    Scratch scratch;
    while (!stop.load(std::memory_order_relaxed)) {
      const size_t index = next.fetch_add(1);
      if (index >= jobs.size()) return;
      Expected<void> result;
      try {
        result = jobs[index].run(scratch);
      } catch (const std::bad_alloc&) {
        result = fail(Code::resource_exhausted,
                      fmt::format("out of memory while packing {}", jobs[index].section));
      }
      const std::lock_guard lock(mutex);
      if (!result) {
        if (first_error) first_error = std::move(result);
        stop.store(true, std::memory_order_relaxed);
        return;
      }
      done += jobs[index].cost;
      if (progress)
        progress(static_cast<double>(done) / static_cast<double>(std::max<int64_t>(total, 1)),
                 jobs[index].section);
    }
  };
  std::vector<std::jthread> team;
  for (int i = 1; i < threads; ++i) team.emplace_back(work);
  work();
  team.clear();  // joins
  return first_error;
}

Expected<uint64_t> checksum_of(const OutputFile& file, const Section& section,
                               std::vector<std::byte>& buffer) {
  uint64_t sum = 0;
  for (uint64_t at = 0; at < section.size; at += kChecksumPiece) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(kChecksumPiece, section.size - at));
    MR_TRY(file.read_at(section.offset + at, piece));
    sum = hash64(piece, sum);
  }
  return sum;
}

Expected<void> finish(OutputFile& file, PackType type, const ModelConfig& config,
                      std::vector<Section>& sections, uint64_t sections_end) {
  std::vector<std::byte> buffer(kChecksumPiece);
  for (Section& section : sections) section.checksum = MR_TRY(checksum_of(file, section, buffer));
  const std::string directory = directory_to_json(type, config, sections);
  if (directory.size() > kMaxDirectoryBytes)
    return fail(Code::internal, fmt::format("a directory of {} bytes is over the limit of {}",
                                            directory.size(), kMaxDirectoryBytes));
  MR_TRY(file.write_at(sections_end, bytes_of(directory.data(), static_cast<int64_t>(directory.size()))));
  PackedHeader header{.file_bytes = sections_end + directory.size(),
                      .directory_offset = sections_end,
                      .directory_bytes = directory.size(),
                      .directory_xxh3 = hash64(std::string_view(directory))};
  header.header_xxh3 = hash64(bytes_of(&header, 1).first(offsetof(PackedHeader, header_xxh3)));
  MR_TRY(file.write_at(0, bytes_of(&header, 1)));
  return file.commit(header.file_bytes);
}

}  // namespace

Expected<void> pack_checkpoint(const std::filesystem::path& checkpoint_path,
                               const std::filesystem::path& packed, const PackOptions& options) {
  const Checkpoint checkpoint = MR_TRY(open_checkpoint(checkpoint_path));
  const Plan plan = architecture_page(checkpoint.config.architecture).plan(checkpoint.config);
  MR_TRY(checkpoint.check(plan));
  MR_TRY(check_attention(checkpoint.config, options.type));  // better now than when it is run

  const std::string tokenizer = serialize(checkpoint.tokenizer);
  std::vector<PlannedSection> planned = planned_sections(plan, options.type);
  planned.insert(planned.begin(),
                 {{"tokenizer", tokenizer.size()}, {"chat_template", checkpoint.chat_template.size()}});
  std::vector<Section> sections;
  std::map<std::string, uint64_t> offsets;
  uint64_t end = kPackedHeaderBytes;
  for (const PlannedSection& section : planned) {
    sections.push_back({.name = section.name, .offset = end, .size = section.size});
    offsets.emplace(section.name, end);
    end = static_cast<uint64_t>(round_up(static_cast<int64_t>(end + section.size), kSectionAlignment));
  }

  OutputFile file = MR_TRY(OutputFile::create(packed, end + kMiB));
  MR_TRY(file.write_at(offsets.at("tokenizer"),
                       bytes_of(tokenizer.data(), static_cast<int64_t>(tokenizer.size()))));
  MR_TRY(file.write_at(
      offsets.at("chat_template"),
      bytes_of(checkpoint.chat_template.data(), static_cast<int64_t>(checkpoint.chat_template.size()))));
  Packer packer(checkpoint, plan, options.type, file, offsets);
  MR_TRY(run_jobs(packer.jobs(), std::clamp(options.threads, 1, kMaxThreads), options.progress));
  return finish(file, options.type, checkpoint.config, sections, end);
}

namespace {

// What tells one state of a file from another without reading it all: size, time of change, and its first 64
// KiB.
Expected<uint64_t> file_facts(const std::filesystem::path& path, uint64_t seed) {
  const MappedFile file = MR_TRY(MappedFile::open(path));
  std::error_code error;
  const auto changed = std::filesystem::last_write_time(path, error).time_since_epoch().count();
  const std::string facts =
      fmt::format("{} {} {}", path.filename().string(), file.bytes().size(), error ? 0 : changed);
  return hash64(file.bytes().first(std::min<size_t>(file.bytes().size(), 64 * kKiB)), hash64(facts, seed));
}

// What packing reads of a folder: configs, tokenizer.json and indexes, templates, weights, and the
// vocabularies that are not JSON (tokenizer.model, tiktoken.model).
bool is_part_of_checkpoint(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".json" || extension == ".jinja" || extension == ".safetensors" ||
         extension == ".model";
}

}  // namespace

Expected<std::string> packed_file_name(const std::filesystem::path& checkpoint, PackType type) {
  const std::string_view type_name = type == PackType::int8 ? "int8" : "float32";
  uint64_t hash = hash64(fmt::format("{} {}", kPackedVersion, type_name));
  std::error_code error;
  std::string stem = checkpoint.stem().string();
  if (std::filesystem::is_directory(checkpoint, error)) {
    stem = std::filesystem::weakly_canonical(checkpoint, error).filename().string();
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(checkpoint, error))
      if (entry.is_regular_file(error) && is_part_of_checkpoint(entry.path())) files.push_back(entry.path());
    if (files.empty()) return invalid(fmt::format("{} holds no checkpoint files", checkpoint.string()));
    std::ranges::sort(files);
    for (const auto& file : files) hash = MR_TRY(file_facts(file, hash));
  } else {
    hash = MR_TRY(file_facts(checkpoint, hash));
    const auto generation = checkpoint.parent_path() / "generation_config.json";
    if (std::filesystem::exists(generation, error)) hash = MR_TRY(file_facts(generation, hash));
  }
  return fmt::format("{}-{:016x}.{}.mrpack", stem, hash, type_name);
}

}  // namespace millrace::model
