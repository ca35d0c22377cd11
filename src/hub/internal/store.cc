#include "hub/internal/store.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "hub/hub.h"

namespace millrace::hub {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kManifest = "millrace.json";

bool name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
         c == '-' || c == '+';
}

}  // namespace

bool safe_file_name(std::string_view name) {
  constexpr size_t kMaxBytes = 200;
  if (name.empty() || name.size() > kMaxBytes || name.front() == '.') return false;
  for (const char c : name)
    if (!name_character(c)) return false;
  return true;
}

Expected<ModelName> parse_model_name(std::string_view model) {
  ModelName name;
  name.text = model;
  if (model.empty()) return invalid("the model's name is empty");
  for (const CatalogueEntry& entry : catalogue())
    if (entry.name == model) {
      name.source = ModelName::Source::catalogue;
      name.repository = name.folder = entry.name;
      return name;
    }
  if (model.starts_with("hf:")) {
    name.source = ModelName::Source::hugging_face;
    std::string_view rest = model.substr(3);
    if (const size_t colon = rest.find(':'); colon != std::string_view::npos) {
      name.file = rest.substr(colon + 1);
      rest = rest.substr(0, colon);
      if (!safe_file_name(name.file))
        return invalid(fmt::format("'{}' in '{}' is not a plain file name", name.file, model));
    }
    const size_t slash = rest.find('/');
    if (slash == std::string_view::npos || !safe_file_name(rest.substr(0, slash)) ||
        !safe_file_name(rest.substr(slash + 1)))
      return invalid(
          fmt::format("'{}' should read hf:owner/repository or hf:owner/repository:file.gguf", model));
    name.repository = rest;
    name.folder = fmt::format("hf--{}--{}", rest.substr(0, slash), rest.substr(slash + 1));
    if (!name.file.empty()) name.folder += "--" + name.file;
    return name;
  }
  if (model.starts_with("pypi:")) {
    name.source = ModelName::Source::pypi;
    name.repository = model.substr(5);
    if (!safe_file_name(name.repository) || name.repository.front() == '-')
      return invalid(fmt::format("'{}' is not the name of a Python package", name.repository));
    name.folder = "pypi--" + name.repository;
    return name;
  }
  return name;
}

fs::path models_folder() { return millrace_home() / "models"; }
fs::path model_folder(const ModelName& name) { return models_folder() / name.folder; }
fs::path partial_folder(const ModelName& name) { return models_folder() / ("." + name.folder + ".partial"); }

std::optional<fs::path> pulled_checkpoint(const ModelName& name) {
  const fs::path folder = model_folder(name);
  const auto text = read_file(folder / kManifest, size_t{1} << 20);
  if (!text) return std::nullopt;
  const auto manifest = parse_json(*text);
  if (!manifest || !manifest->is_object()) return std::nullopt;
  const json::value* file = manifest->get_object().if_contains("checkpoint");
  if (!file || !file->is_string()) return std::nullopt;
  const std::string_view checkpoint = file->get_string();
  if (checkpoint.empty()) return folder;
  std::error_code error;
  if (!safe_file_name(checkpoint) || !fs::is_regular_file(folder / checkpoint, error)) return std::nullopt;
  return folder / checkpoint;
}

Expected<fs::path> finish(const ModelName& name, std::string_view checkpoint_file) {
  const fs::path partial = partial_folder(name), folder = model_folder(name);
  const json::object manifest{{"model", name.text}, {"checkpoint", checkpoint_file}};
  MR_TRY(write_file_atomic(partial / kManifest, json::serialize(manifest) + "\n"));
  std::error_code error;
  fs::remove_all(folder, error);  // a folder without a manifest: nobody's model
  fs::rename(partial, folder, error);
  if (error)
    return fail(Code::unavailable, fmt::format("cannot rename {} to {}: {}", partial.string(),
                                               folder.string(), error.message()));
  return checkpoint_file.empty() ? folder : folder / checkpoint_file;
}

Expected<StoreLock> StoreLock::acquire(const ModelName& name, const std::function<bool()>& waiting) {
  std::error_code error;
  fs::create_directories(models_folder(), error);
  const fs::path path = models_folder() / ("." + name.folder + ".lock");
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    const int code = errno;
    return fail(code == EACCES || code == EROFS ? Code::permission_denied : Code::unavailable,
                fmt::format("cannot open {}: {}", path.string(), std::strerror(code)));
  }
  StoreLock lock(fd);
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR)
      return fail(Code::unavailable, fmt::format("cannot lock {}: {}", path.string(), std::strerror(errno)));
    if (waiting && !waiting())
      return fail(Code::cancelled, "stopped while another process was pulling the model");
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  return lock;
}
StoreLock::StoreLock(StoreLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
StoreLock::~StoreLock() {
  if (fd_ >= 0) ::close(fd_);
}

Expected<std::string> file_sha256(const fs::path& path, const std::function<bool(uint64_t)>& on_bytes) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail(Code::not_found, fmt::format("cannot open {}", path.string()));
  Sha256 hash;
  std::vector<char> buffer(size_t{1} << 20);
  uint64_t done = 0;
  while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || in.gcount() > 0) {
    hash.update({buffer.data(), static_cast<size_t>(in.gcount())});
    done += static_cast<uint64_t>(in.gcount());
    if (on_bytes && !on_bytes(done)) return fail(Code::cancelled, "stopped while verifying");
  }
  if (in.bad()) return fail(Code::unavailable, fmt::format("cannot read {}", path.string()));
  return hash.hex();
}

Expected<void> check_room(const fs::path& folder, uint64_t bytes) {
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0) return {};  // not known: the write itself will say
  const uint64_t room = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (room >= bytes) return {};
  return fail(Code::resource_exhausted, fmt::format("{} MB are needed in {}, where {} MB are free",
                                                    bytes >> 20, folder.string(), room >> 20));
}

}  // namespace millrace::hub
