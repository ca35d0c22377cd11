// Checkpoint -> packed file. The plan gives the sections and their sizes; jobs turn weights into them
// (packer.cc) and are run on all threads, each writing its own places of the file (pack_run.cc); then
// directory, header, rename.
#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "base/file.h"
#include "base/granted_memory.h"
#include "base/hash.h"
#include "base/units.h"
#include "model/internal/checkpoint.h"
#include "model/internal/output_file.h"
#include "model/internal/packed_layout.h"
#include "model/internal/packer.h"
#include "model/kv_shape.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

constexpr int kMaxThreads = 64;
// Of the 2 GiB that packing may hold (packed_model.h); the rest is for the checkpoint's names and shapes, the
// jobs, the journal and the program.
constexpr uint64_t kScratchBudget = 1536 * kMiB;
uint64_t scratch_budget(const CalibrationInputs* inputs, uint64_t shared) {  // one thread runs in any case
  return kScratchBudget - std::min(kScratchBudget, shared + (inputs != nullptr ? inputs->memory_bytes() : 0));
}
constexpr uint64_t kComparePiece = 16 * kMiB;

// What tells one state of a file from another without reading it all: name, size, time of modification, and
// its first 64 KiB.
Expected<uint64_t> file_facts(const std::filesystem::path& path, uint64_t seed) {
  const MappedFile file = MR_TRY(MappedFile::open(path));
  std::error_code error;
  const auto modified = std::filesystem::last_write_time(path, error).time_since_epoch().count();
  const std::string facts =
      fmt::format("{} {} {}", path.filename().string(), file.bytes().size(), error ? 0 : modified);
  return hash64(file.bytes().first(std::min<size_t>(file.bytes().size(), 64 * kKiB)), hash64(facts, seed));
}

// What packing reads of a folder: configs, tokenizer.json and indexes, templates, weights, and the
// vocabularies that are not JSON (tokenizer.model, tiktoken.model).
bool is_part_of_checkpoint(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".json" || extension == ".jinja" || extension == ".safetensors" ||
         extension == ".model";
}

// The files that a checkpoint is made of, sorted.
Expected<std::vector<std::filesystem::path>> files_of(const std::filesystem::path& checkpoint) {
  std::vector<std::filesystem::path> files;
  std::error_code error, ignored;
  if (std::filesystem::is_directory(checkpoint, error)) {
    std::filesystem::directory_iterator entry(checkpoint, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
      if (entry->is_regular_file(ignored) && is_part_of_checkpoint(entry->path()))
        files.push_back(entry->path());
    if (error)
      return fail(error == std::errc::permission_denied ? Code::permission_denied : Code::unavailable,
                  fmt::format("cannot list {}: {}", checkpoint.string(), error.message()));
    if (files.empty()) return invalid(fmt::format("{} holds no checkpoint files", checkpoint.string()));
    std::ranges::sort(files);
  } else {
    files.push_back(checkpoint);
    const auto generation = checkpoint.parent_path() / "generation_config.json";
    if (std::filesystem::exists(generation, error)) files.push_back(generation);
  }
  return files;
}

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

PackJob text_job(const PackLayout& layout, const std::string& name, const std::string& text) {
  return {.section = layout.index.at(name),
          .places = {{layout.at(name).offset, text.size()}},
          .cost = text.size(),
          .scratch_bytes = text.size(),
          .run = [&text](PackScratch&, JobOutput& out) { return out.put(std::as_bytes(std::span(text))); }};
}

// Gigabytes that nobody needs in the packed file, compared piece by piece like the rest of the work.
void add_copy_jobs(const std::vector<Checkpoint::Copy>& copies, size_t section, std::vector<PackJob>& jobs) {
  for (const Checkpoint::Copy& copy : copies) {
    for (uint64_t begin = 0; begin < copy.tensor->data.size(); begin += kComparePiece) {
      const uint64_t end = std::min<uint64_t>(copy.tensor->data.size(), begin + kComparePiece);
      jobs.push_back(
          {.section = section,
           .places = {},
           .cost = end - begin,
           .scratch_bytes = kMiB,
           .run = [&copy, begin, end](PackScratch&, JobOutput&) { return check_copy(copy, begin, end); }});
    }
  }
}

// Of all that decides the bytes of the packed file: the state of the checkpoint's files, what was read of
// them so far, what is made of it, and in which jobs. Never a reason to continue wrongly; a file that was
// touched or copied is a reason to start anew.
Expected<uint64_t> identity_of(const std::vector<std::filesystem::path>& files, const std::string& directory,
                               const std::string& tokenizer, const std::string& chat_template,
                               const std::vector<PackJob>& jobs) {
  uint64_t hash = hash64(fmt::format("{} {}", kPackedVersion, directory));
  hash = hash64(tokenizer, hash);
  hash = hash64(chat_template, hash);
  for (const PackJob& job : jobs) {
    const uint64_t facts[] = {job.section, job.places.size(), job.cost};
    hash = hash64(bytes_of(facts), hash);
    for (const ByteRange& place : job.places) hash = hash64(bytes_of(place), hash);
  }
  for (const auto& file : files) {
    hash = MR_TRY(file_facts(file, hash));
    const FileState state = MR_TRY(FileState::of(file));  // a device's number may change with the next boot
    hash = hash64(fmt::format("{} {} {}", state.inode, state.modified_ns, state.changed_ns), hash);
  }
  return hash;
}
static_assert(std::has_unique_object_representations_v<ByteRange>);

// The files were read one after the other; together they are one checkpoint only if none has changed since.
Expected<void> unchanged(const Checkpoint& checkpoint) {
  for (const auto& file : checkpoint.files) {
    if (MR_TRY(FileState::of(file->path)).same_content(file->state)) continue;
    return changed_while_packing(file->path);
  }
  return {};
}

Expected<void> finish(OutputFile& file, const std::string& directory, uint64_t directory_offset) {
  MR_TRY(file.write_at(directory_offset, std::as_bytes(std::span(directory))));
  PackedHeader header{.file_bytes = directory_offset + directory.size(),
                      .directory_offset = directory_offset,
                      .directory_bytes = directory.size(),
                      .directory_xxh3 = hash64(std::string_view(directory))};
  header.header_xxh3 = hash64(bytes_of(header).first(offsetof(PackedHeader, header_xxh3)));
  MR_TRY(file.write_at(0, bytes_of(header)));
  return file.commit(header.file_bytes);
}

// Whether the same command may succeed later on what is there, or has to begin with another checkpoint.
bool worth_keeping(Code code) {
  return code != Code::invalid_argument && code != Code::data_loss && code != Code::unimplemented &&
         code != Code::failed_precondition;
}

}  // namespace

double PackProgress::fraction() const {
  return bytes_total > 0 ? static_cast<double>(bytes_done) / static_cast<double>(bytes_total) : 0;
}

Expected<void> pack_checkpoint(const std::filesystem::path& checkpoint_path,
                               const std::filesystem::path& packed, const PackOptions& options) {
  const Checkpoint checkpoint = MR_TRY(open_checkpoint(checkpoint_path));
  const Plan plan = architecture_page(checkpoint.config.architecture).plan(checkpoint.config);
  const auto copies = MR_TRY(checkpoint.check(plan));
  MR_TRY(check_attention(checkpoint.config, options.type));  // better now than when it is run
  const auto sources = MR_TRY(files_of(checkpoint_path));
  for (std::error_code none_there; const auto& source : sources)
    if (std::filesystem::equivalent(source, packed, none_there))
      return invalid(
          fmt::format("{} is part of the checkpoint; give the packed file another name", packed.string()));

  const std::string tokenizer = serialize(checkpoint.tokenizer);
  PackLayout layout{.sections = {}, .index = {}, .end = kPackedHeaderBytes};
  layout.add("tokenizer", tokenizer.size());
  layout.add("chat_template", checkpoint.chat_template.size());
  for (const PlannedSection& section : planned_sections(plan, options.type))
    layout.add(section.name, section.size);
  // Checksums have a fixed width, so this has its final size.
  const auto directory = [&] { return directory_to_json(options.type, checkpoint.config, layout.sections); };
  const std::string unsummed = directory();
  if (unsummed.size() > kMaxDirectoryBytes)
    return fail(Code::internal, fmt::format("a directory of {} bytes is over the limit of {}",
                                            unsummed.size(), kMaxDirectoryBytes));

  Packer packer(checkpoint, plan, options.type, layout, options.calibration);
  std::vector<PackJob> jobs{text_job(layout, "tokenizer", tokenizer),
                            text_job(layout, "chat_template", checkpoint.chat_template)};
  std::ranges::move(packer.jobs(), std::back_inserter(jobs));
  add_copy_jobs(copies, layout.sections.size() - 1, jobs);

  const uint64_t size = layout.end + unsummed.size();
  uint64_t identity = MR_TRY(identity_of(sources, unsummed, tokenizer, checkpoint.chat_template, jobs));
  if (options.calibration != nullptr) {
    const uint64_t digest = options.calibration->digest();
    identity = hash64(bytes_of(digest), identity);
  }
  OutputFile file =
      MR_TRY(OutputFile::open(packed, {.size = size,
                                       .identity = identity,
                                       .max_entries = jobs.size() + layout.sections.size(),
                                       .on_wait = [&] {
                                         if (options.progress)
                                           options.progress({.stage = PackProgress::Stage::waiting,
                                                             .bytes_total = size,
                                                             .what = "another process packs the same file"});
                                       }}));
  if (file.finished()) return {};
  auto done =
      run_jobs({.jobs = jobs,
                .sections = layout.sections,
                .file = file,
                .threads = threads_within(scratch_budget(options.calibration, packer.shared_bytes()), std::clamp(options.threads, 1, kMaxThreads), jobs),
                .forget = size > granted_memory().total_bytes / 2,
                .progress = options.progress});
  if (done) done = unchanged(checkpoint);
  if (done) done = finish(file, directory(), layout.end);
  if (!done && worth_keeping(done.error().code)) return done;
  if (!done) file.discard();
  return done;
}

Expected<CheckpointFacts> checkpoint_facts(const std::filesystem::path& path) {
  Checkpoint checkpoint = MR_TRY(open_checkpoint(path));
  return CheckpointFacts{std::move(checkpoint.config), std::move(checkpoint.tokenizer)};
}

Expected<std::string> packed_file_name(const std::filesystem::path& checkpoint, PackType type) {
  const std::string_view type_name = type == PackType::int8 ? "int8" : "float32";
  uint64_t hash = hash64(fmt::format("{} {}", kPackedVersion, type_name));
  for (const auto& file : MR_TRY(files_of(checkpoint))) hash = MR_TRY(file_facts(file, hash));
  std::error_code error;
  const std::string stem = std::filesystem::is_directory(checkpoint, error)
                               ? std::filesystem::weakly_canonical(checkpoint, error).filename().string()
                               : checkpoint.stem().string();
  return fmt::format("{}-{:016x}.{}.mrpack", stem, hash, type_name);
}

namespace {
constexpr std::string_view kExtension = ".mrpack", kCalibrated = ".calibrated", kPartial = ".partial";
// Of the way in which inputs become weights: files made in another way are not taken.
std::string calibrated_mark() { return fmt::format("{}{}-", kCalibrated, kCalibrationVersion); }
}

std::string calibrated_file_name(std::string_view packed_file_name, uint64_t digest) {
  if (packed_file_name.ends_with(kExtension)) packed_file_name.remove_suffix(kExtension.size());
  return fmt::format("{}{}{:016x}{}", packed_file_name, calibrated_mark(), digest, kExtension);
}

std::vector<CalibratedFile> calibrated_files(const std::filesystem::path& packed) {
  namespace fs = std::filesystem;
  const std::string prefix = packed.stem().string() + std::string(kCalibrated);
  std::vector<std::pair<fs::file_time_type, CalibratedFile>> found;
  std::error_code error;
  for (fs::directory_iterator it(packed.parent_path(), error), end; !error && it != end;
       it.increment(error)) {
    std::string name = it->path().filename().string();
    const bool whole = !name.ends_with(kPartial);
    if (!whole) name.resize(name.size() - kPartial.size());
    if (!name.starts_with(prefix) || !name.ends_with(kExtension)) continue;
    std::error_code ignored;
    const bool usable = whole && name.starts_with(packed.stem().string() + calibrated_mark());
    found.emplace_back(it->last_write_time(ignored), CalibratedFile{packed.parent_path() / name, usable});
  }
  std::ranges::sort(found, [](const auto& a, const auto& b) {
    if (a.second.usable != b.second.usable) return a.second.usable;
    return a.first != b.first ? a.first > b.first : a.second.path < b.second.path;
  });
  std::vector<CalibratedFile> out;
  for (auto& [time, file] : found) out.push_back(std::move(file));
  return out;
}

void remove_unfinished_pack(const std::filesystem::path& packed) { remove_unfinished_output(packed); }

}  // namespace millrace::model
