// Where the kernel keeps the limits of this process's control groups.
#pragma once
#include <filesystem>
#include <string_view>
#include <vector>

namespace millrace {

struct CgroupFolder {
  std::filesystem::path path;
  bool v2 = false;  // of the unified hierarchy: files are named otherwise than in a v1 hierarchy
};
// The folders whose limits of `controller` ("cpu", "memory") bind this process: its own group's and every one
// above it, each hierarchy from below. Not every one of them need exist: a container sees only the last.
// `root`: where /proc and /sys are, for tests.
std::vector<CgroupFolder> cgroup_folders(std::string_view controller,
                                         const std::filesystem::path& root = "/");

}  // namespace millrace
