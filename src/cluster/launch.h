// What a process needs before it starts others: its share of the CPUs, a private folder for sockets, a
// listening socket to hand down.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "base/status.h"

namespace millrace::cluster {

// The compute threads' CPUs of each of `groups` groups: granted.threads() of them, split as evenly as
// possible, in order (neighbours share caches). With more groups than threads each still gets one, shared.
// Entries are -1 (not pinned) where the cgroup's quota is less than the CPUs one may run on: pinning would
// then crowd containers on the same first cores.
std::vector<std::vector<int>> partition_cpus(const GrantedCpus& granted, int groups);

// A private folder (0700) for sockets and status pages, removed when this is destroyed. Folders that a killed
// supervisor of the same user left behind are removed first; a live one's are locked, and stay.
class RuntimeDirectory {
 public:
  // Under $XDG_RUNTIME_DIR if that is a folder of ours, else under /tmp.
  static Expected<RuntimeDirectory> create();
  RuntimeDirectory(RuntimeDirectory&& other) noexcept;
  RuntimeDirectory& operator=(RuntimeDirectory&&) = delete;
  ~RuntimeDirectory();

  const std::filesystem::path& path() const { return path_; }
  std::string group_socket(int group) const { return path_ / ("group-" + std::to_string(group) + ".sock"); }
  std::string group_status_page(int group) const {
    return path_ / ("group-" + std::to_string(group) + ".status");
  }

 private:
  RuntimeDirectory(std::filesystem::path path, int lock_fd) : path_(std::move(path)), lock_fd_(lock_fd) {}
  std::filesystem::path path_;
  int lock_fd_ = -1;
};

struct Listener {
  int fd = -1;        // the caller's to close; close-on-exec, so that only children that list it inherit it
  uint16_t port = 0;  // the real one, if 0 was asked for
};
// A listening TCP socket on host (a name, IPv4 or IPv6 address; brackets allowed) and port (0: any).
Expected<Listener> listen_tcp(const std::string& host, uint16_t port);

}  // namespace millrace::cluster
