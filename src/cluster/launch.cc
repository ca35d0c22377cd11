#include "cluster/launch.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iterator>
#include <memory>
#include <utility>

#include "base/log.h"

namespace millrace::cluster {
namespace {

constexpr std::string_view kFolderPrefix = "millrace-";
constexpr std::string_view kLockName = "lock", kNewLockName = "lock.new";
constexpr time_t kStartTakes_s = 60;  // from a folder to its lock, at most: some system calls
constexpr int kListenBacklog = 1024;  // the kernel cuts it at net.core.somaxconn

bool is_private_folder(const std::filesystem::path& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode) && info.st_uid == ::geteuid() &&
         (info.st_mode & 0077) == 0;
}

// The lock is held by a live supervisor and by nobody else: the kernel releases it with the process.
int lock_file(const std::filesystem::path& file, int flags) {
  const int fd = ::open(file.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
  if (fd < 0) return -1;
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  ::close(fd);
  return -1;
}

// The lock file gets its name when it is locked: another supervisor that starts now must not take the folder
// for a dead one's.
int make_lock(const std::filesystem::path& folder) {
  const std::filesystem::path unnamed = folder / kNewLockName;
  const int fd = lock_file(unnamed, O_CREAT | O_EXCL);
  if (fd < 0) return -1;
  if (::rename(unnamed.c_str(), (folder / kLockName).c_str()) == 0) return fd;
  ::close(fd);
  return -1;
}

// Whoever made this folder is gone before its lock had its name.
bool died_at_start(const std::filesystem::path& folder) {
  struct stat info {};
  if (::lstat(folder.c_str(), &info) != 0 || ::time(nullptr) - info.st_mtime < kStartTakes_s) return false;
  std::error_code error;
  const std::filesystem::directory_iterator entry(folder, error), end;
  return entry != end && entry->path().filename() == kNewLockName && std::next(entry) == end;
}

void remove_stale_folders(const std::filesystem::path& parent) {
  std::error_code ignored;
  for (auto entry = std::filesystem::directory_iterator(parent, ignored);
       entry != std::filesystem::directory_iterator(); entry.increment(ignored)) {
    const std::filesystem::path folder = entry->path();
    if (!folder.filename().string().starts_with(kFolderPrefix) || !is_private_folder(folder)) continue;
    // Only folders that have a lock file: others are not ours.
    const int fd = lock_file(folder / (died_at_start(folder) ? kNewLockName : kLockName), 0);
    if (fd < 0) continue;
    log(LogLevel::info, "cluster", "removing {}, left behind by a process that was killed", folder.string());
    std::filesystem::remove_all(folder, ignored);
    ::close(fd);
  }
}

}  // namespace

std::vector<std::vector<int>> partition_cpus(const GrantedCpus& granted, int groups) {
  const int threads = std::max(1, std::min(granted.threads(), static_cast<int>(granted.cpus.size())));
  const bool pinned = granted.quota_cores <= 0 || granted.quota_cores >= granted.physical_cores;
  const auto cpu = [&](int thread) {
    return pinned && !granted.cpus.empty() ? granted.cpus[static_cast<size_t>(thread)] : -1;
  };
  std::vector<std::vector<int>> parts(static_cast<size_t>(std::max(groups, 0)));
  for (int group = 0; group < groups; ++group) {
    std::vector<int>& part = parts[static_cast<size_t>(group)];
    for (int thread = threads * group / groups; thread < threads * (group + 1) / groups; ++thread)
      part.push_back(cpu(thread));
    if (part.empty())
      part.push_back(cpu(threads * group / groups));  // more groups than threads: neighbours share
  }
  return parts;
}

Expected<RuntimeDirectory> RuntimeDirectory::create() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  const std::filesystem::path parent =
      runtime != nullptr && *runtime == '/' && is_private_folder(runtime) ? runtime : "/tmp";
  remove_stale_folders(parent);
  std::string path = parent / (std::string(kFolderPrefix) + "XXXXXX");
  if (::mkdtemp(path.data()) == nullptr)
    return fail(Code::unavailable, fmt::format("cannot make a folder {}: {}", path, std::strerror(errno)));
  const int fd = make_lock(path);
  if (fd < 0)
    return fail(Code::unavailable,
                fmt::format("cannot lock {}/{}: {}", path, kLockName, std::strerror(errno)));
  return RuntimeDirectory(path, fd);
}

RuntimeDirectory::RuntimeDirectory(RuntimeDirectory&& other) noexcept
    : path_(std::move(other.path_)), lock_fd_(std::exchange(other.lock_fd_, -1)) {}

RuntimeDirectory::~RuntimeDirectory() {
  if (lock_fd_ < 0) return;
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
  ::close(lock_fd_);
}

Expected<Listener> listen_tcp(const std::string& host, uint16_t port) {
  std::string name = host;
  if (name.size() > 2 && name.front() == '[' && name.back() == ']') name = name.substr(1, name.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int lookup =
      ::getaddrinfo(name.empty() ? nullptr : name.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (lookup != 0) return invalid(fmt::format("--host {}: {}", host, ::gai_strerror(lookup)), "host");
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  int error = EADDRNOTAVAIL;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    const int fd = ::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, at->ai_protocol);
    if (fd < 0) {
      error = errno;
      continue;
    }
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    if (::bind(fd, at->ai_addr, at->ai_addrlen) == 0 && ::listen(fd, kListenBacklog) == 0 &&
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) == 0) {
      const in_port_t network = bound.ss_family == AF_INET6
                                    ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                    : reinterpret_cast<sockaddr_in*>(&bound)->sin_port;
      return Listener{fd, ntohs(network)};
    }
    error = errno;
    ::close(fd);
  }
  const Code code = error == EACCES ? Code::permission_denied : Code::unavailable;
  return fail(code, fmt::format("cannot listen on {}:{}: {}", host, port, std::strerror(error)));
}

}  // namespace millrace::cluster
