#include "base/cgroup.h"

#include <fstream>
#include <sstream>
#include <string>

namespace millrace {
namespace {

// Whether a comma-separated list holds the word.
bool lists(const std::string& words, std::string_view wanted) {
  std::istringstream text(words);
  for (std::string word; std::getline(text, word, ',');)
    if (word == wanted) return true;
  return false;
}

}  // namespace

std::vector<CgroupFolder> cgroup_folders(std::string_view controller, const std::filesystem::path& root) {
  std::vector<CgroupFolder> folders;
  std::ifstream self(root / "proc/self/cgroup");
  // A line is "number:controllers:/path"; the unified hierarchy's names no controllers.
  for (std::string line; std::getline(self, line);) {
    const size_t a = line.find(':');
    const size_t b = a == std::string::npos ? a : line.find(':', a + 1);
    if (b == std::string::npos) continue;
    const std::string controllers = line.substr(a + 1, b - a - 1);
    std::string path = line.substr(b + 1);
    const bool v2 = controllers.empty();
    if (!v2 && !lists(controllers, controller)) continue;
    const std::string mount = (root / "sys/fs/cgroup").string() + (v2 ? "" : "/" + std::string(controller));
    while (path.size() > 1) {
      folders.push_back({mount + path, v2});
      const size_t last = path.find_last_of('/');
      path.resize(last == std::string::npos ? 0 : last);
    }
    folders.push_back({mount, v2});
  }
  return folders;
}

}  // namespace millrace
