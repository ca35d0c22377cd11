#include "model/packed_model.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>
#include <unordered_map>

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "model/internal/packed_layout.h"

namespace millrace::model {
namespace {

std::unexpected<Status> bad(std::string message) {
  return fail(Code::data_loss, "packed model: " + std::move(message) + "; delete the file and pack again");
}

Expected<PackedHeader> read_header(std::span<const std::byte> bytes) {
  PackedHeader header;
  if (bytes.size() < kPackedHeaderBytes)
    return bad(fmt::format("a file of {} bytes has no header of {}", bytes.size(), kPackedHeaderBytes));
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kPackedMagic)
    return invalid("packed model: this is not a packed model (it does not start with MRPACK01)");
  if (header.version != kPackedVersion)
    return fail(Code::failed_precondition,
                fmt::format("packed model: layout version {}; this program reads {}: pack again",
                            header.version, kPackedVersion));
  if (header.header_xxh3 != hash64(bytes.first(offsetof(PackedHeader, header_xxh3))))
    return bad("the header is damaged");
  if (header.header_bytes != kPackedHeaderBytes || header.file_bytes != bytes.size())
    return bad(fmt::format("the header says {} bytes and the file has {}", header.file_bytes, bytes.size()));
  if (header.directory_bytes > kMaxDirectoryBytes || header.directory_offset < kPackedHeaderBytes ||
      header.directory_offset > bytes.size() ||
      header.directory_bytes > bytes.size() - header.directory_offset)
    return bad(fmt::format("a directory of {} bytes at offset {} does not fit", header.directory_bytes,
                           header.directory_offset));
  return header;
}

class Packed final : public PackedModel {
 public:
  const ModelConfig& config() const override { return directory_.config; }
  PackType type() const override { return directory_.type; }
  const Graph& graph() const override { return graph_; }
  const TokenizerSpec& tokenizer_spec() const override { return tokenizer_; }
  const std::string& chat_template() const override { return chat_template_; }
  size_t size_bytes() const override { return bytes_.size(); }
  uint64_t fingerprint() const override { return fingerprint_; }
  void bring_into_memory(size_t own_at_most) const override {
    if (bytes_.data() != mapping.bytes().data()) return;  // the caller's
    // An engine that shares the model with one that runs already leaves it where it is.
    std::call_once(brought_, [&] { bring(own_at_most); });
  }

  void bring(size_t own_at_most) const {
    switch (mapping.bring_into_memory(own_at_most)) {
      case MappedFile::Place::nowhere:
        return log(LogLevel::warn, "model",
                   "{} has {} MiB, more than the memory that is left: it stays on disk",
                   mapping.path().string(), size_bytes() >> 20);
      case MappedFile::Place::cache:
        return log(LogLevel::info, "model", "{} MiB of weights in the page cache", size_bytes() >> 20);
      case MappedFile::Place::own:
        return log(LogLevel::info, "model", "{} MiB of weights in memory of this process's own",
                   size_bytes() >> 20);
    }
  }

  std::string_view section_at(const void* first_byte) const override {
    const auto at = reinterpret_cast<uintptr_t>(first_byte) - reinterpret_cast<uintptr_t>(bytes_.data());
    // Sections lie in the order of their offsets; an empty one shares its place with the next.
    const auto found = std::ranges::upper_bound(directory_.sections, at, {}, &Section::offset);
    if (found == directory_.sections.begin() || std::prev(found)->offset != at) return {};
    return std::prev(found)->name;
  }

  MappedFile mapping;  // empty when the bytes are the caller's

  Expected<void> read(std::span<const std::byte> bytes, const OpenOptions& options) {
    bytes_ = bytes;
    header_ = MR_TRY(read_header(bytes));
    const auto directory = bytes.subspan(header_.directory_offset, header_.directory_bytes);
    if (hash64(directory) != header_.directory_xxh3) return bad("the directory is damaged");
    auto parsed = directory_from_json({reinterpret_cast<const char*>(directory.data()), directory.size()});
    if (!parsed) return bad("the directory: " + parsed.error().message);
    directory_ = std::move(*parsed);
    fingerprint_ = fingerprint_of(directory_);
    MR_TRY(check_sections());
    if (options.verify_checksums)
      for (const Section& section : directory_.sections) MR_TRY(verify(section));
    return bind();
  }

 private:
  std::span<const std::byte> bytes_of(const Section& section) const {
    return bytes_.subspan(section.offset, section.size);
  }

  Expected<void> verify(const Section& section) const {
    if (section_checksum(bytes_of(section)) == section.checksum) return {};
    return bad(fmt::format("section \"{}\" at offset {} is damaged", section.name, section.offset));
  }

  // Every section lies in the file, aligned, behind the one before, under a name of its own.
  Expected<void> check_sections() {
    uint64_t end = kPackedHeaderBytes;
    for (const Section& section : directory_.sections) {
      if (section.offset % kSectionAlignment != 0 || section.offset < end ||
          section.offset > header_.directory_offset ||
          section.size > header_.directory_offset - section.offset)
        return bad(fmt::format("section \"{}\" of {} bytes at offset {} does not fit", section.name,
                               section.size, section.offset));
      end = section.offset + section.size;
      if (!sections_.emplace(section.name, &section).second)
        return bad(fmt::format("section \"{}\" occurs twice", section.name));
    }
    return {};
  }

  Expected<const Section*> section(const std::string& name) const {
    const auto found = sections_.find(name);
    if (found == sections_.end()) return bad(fmt::format("section \"{}\" is missing", name));
    return found->second;
  }

  Expected<void> bind() {
    const Plan plan = architecture_page(directory_.config.architecture).plan(directory_.config);
    // First, so that what is made below is bounded by the directory's own size, whatever its config says.
    const int64_t wanted_count =
        planned_section_count(plan, directory_.type) + 2;  // tokenizer, chat_template
    if (wanted_count != static_cast<int64_t>(sections_.size()))
      return bad(fmt::format("{} sections where the config asks for {}", sections_.size(), wanted_count));
    const auto planned = planned_sections(plan, directory_.type);
    for (const PlannedSection& wanted : planned) {
      const Section* found = MR_TRY(section(wanted.name));
      if (found->size != wanted.size)
        return bad(fmt::format("section \"{}\" has {} bytes; the config asks for {}", wanted.name,
                               found->size, wanted.size));
    }
    graph_ = bind_graph(plan, directory_.type, [this](const std::string& name) {
      return bytes_.data() + sections_.at(name)->offset;
    });
    // These two are parsed and acted on, so they are verified always; they are small.
    const Section *tokenizer = MR_TRY(section("tokenizer")),
                  *chat_template = MR_TRY(section("chat_template"));
    MR_TRY(verify(*tokenizer));
    MR_TRY(verify(*chat_template));
    const auto text = [this](const Section& s) {
      return std::string_view(reinterpret_cast<const char*>(bytes_of(s).data()), s.size);
    };
    auto spec = deserialize_tokenizer(text(*tokenizer));
    if (!spec) return bad("the tokenizer: " + spec.error().message);
    tokenizer_ = std::move(*spec);
    chat_template_ = text(*chat_template);
    return {};
  }

  mutable std::once_flag brought_;
  std::span<const std::byte> bytes_;
  PackedHeader header_;
  Directory directory_;
  uint64_t fingerprint_ = 0;
  std::unordered_map<std::string, const Section*>
      sections_;  // into directory_, which does not change after read()
  Graph graph_;
  TokenizerSpec tokenizer_;
  std::string chat_template_;
};

}  // namespace

Expected<std::shared_ptr<const PackedModel>> PackedModel::open(const std::filesystem::path& path,
                                                               const OpenOptions& options) {
  auto model = std::make_shared<Packed>();
  model->mapping = MR_TRY(MappedFile::open(path));
  model->mapping.advise_huge_pages();
  if (auto read = model->read(model->mapping.bytes(), options); !read) {
    read.error().message = fmt::format("{}: {}", path.string(), read.error().message);
    return std::unexpected(std::move(read).error());
  }
  return model;
}

Expected<std::shared_ptr<const PackedModel>> PackedModel::parse(std::span<const std::byte> bytes,
                                                                const OpenOptions& options) {
  MR_CHECK(reinterpret_cast<uintptr_t>(bytes.data()) % 64 == 0, "packed bytes must be 64-byte aligned");
  auto model = std::make_shared<Packed>();
  MR_TRY(model->read(bytes, options));
  return model;
}

}  // namespace millrace::model
