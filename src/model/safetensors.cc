#include "model/safetensors.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "base/file.h"
#include "base/json.h"
#include "model/internal/float_formats.h"
#include "model/internal/json_fields.h"

namespace millrace::model {
namespace {

constexpr size_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own reader
constexpr JsonLimits kHeaderLimits{.max_bytes = kMaxHeaderBytes, .max_depth = 8};
constexpr size_t kMaxTensors = 1u << 20;
constexpr size_t kMaxShards = 4096;
constexpr size_t kMaxDimensions = 8;

struct Dtype {
  std::string_view name;
  SafetensorsType type;
  uint64_t bytes;
};
constexpr Dtype kDtypes[] = {
    {"F32", SafetensorsType::f32, 4},       {"F16", SafetensorsType::f16, 2},
    {"BF16", SafetensorsType::bf16, 2},     {"F64", SafetensorsType::other, 8},
    {"I64", SafetensorsType::other, 8},     {"I32", SafetensorsType::other, 4},
    {"I16", SafetensorsType::other, 2},     {"I8", SafetensorsType::other, 1},
    {"U8", SafetensorsType::other, 1},      {"U16", SafetensorsType::other, 2},
    {"U32", SafetensorsType::other, 4},     {"U64", SafetensorsType::other, 8},
    {"BOOL", SafetensorsType::other, 1},    {"F8_E4M3", SafetensorsType::f8_e4m3, 1},
    {"F8_E5M2", SafetensorsType::other, 1},
};

std::unexpected<Status> bad(std::string message) {
  return fail(Code::data_loss, "safetensors: " + std::move(message));
}

Expected<uint64_t> offset_at(const json::array& offsets, size_t index, std::string_view name) {
  const auto value = integer_of(offsets[index]);
  if (!value || *value < 0)
    return bad(fmt::format("tensor \"{}\" has a data offset that is not a size", name));
  return static_cast<uint64_t>(*value);
}

Expected<SafetensorsTensor> read_tensor(std::string_view name, const json::value& entry,
                                        std::span<const std::byte> data) {
  if (!entry.is_object()) return bad(fmt::format("the entry of tensor \"{}\" is not an object", name));
  const json::object& object = entry.get_object();
  SafetensorsTensor tensor{.name = std::string(name)};
  tensor.dtype = MR_TRY(read_text(object, "dtype"));  // not in the braces: see MR_TRY
  const auto* dtype = std::ranges::find(kDtypes, tensor.dtype, &Dtype::name);
  if (dtype == std::end(kDtypes))
    return bad(
        fmt::format("tensor \"{}\" has dtype \"{}\", which is not known", name, tensor.dtype.substr(0, 40)));
  tensor.type = dtype->type;
  const json::value *shape = field_of(object, "shape"), *offsets = field_of(object, "data_offsets");
  if (shape == nullptr || !shape->is_array() || shape->get_array().size() > kMaxDimensions)
    return bad(fmt::format("tensor \"{}\" has no shape of at most {} dimensions", name, kMaxDimensions));
  if (offsets == nullptr || !offsets->is_array() || offsets->get_array().size() != 2)
    return bad(fmt::format("tensor \"{}\" has no pair of data_offsets", name));
  uint64_t elements = 1;
  for (const json::value& dimension : shape->get_array()) {
    const auto size = integer_of(dimension);
    // 2^48 elements is far above any file and far below what overflows when multiplied by an element's bytes.
    // An empty tensor's dimensions are bounded alike, since others calculate with them.
    if (!size || *size < 0 ||
        static_cast<uint64_t>(*size) > (uint64_t{1} << 48) / std::max<uint64_t>(elements, 1))
      return bad(fmt::format("tensor \"{}\" has an impossible shape {}", name,
                             json::serialize(*shape).substr(0, 80)));
    elements *= static_cast<uint64_t>(*size);
    tensor.shape.push_back(*size);
  }
  const uint64_t begin = MR_TRY(offset_at(offsets->get_array(), 0, name));
  const uint64_t end = MR_TRY(offset_at(offsets->get_array(), 1, name));
  if (begin > end || end > data.size())
    return bad(fmt::format("tensor \"{}\" spans bytes {} to {} of {}: the file is cut short or damaged", name,
                           begin, end, data.size()));
  if (elements * dtype->bytes != end - begin)
    return bad(fmt::format("tensor \"{}\" of shape {} and dtype {} needs {} bytes but has {}", name,
                           json::serialize(*shape).substr(0, 80), tensor.dtype, elements * dtype->bytes,
                           end - begin));
  tensor.data = data.subspan(begin, end - begin);
  return tensor;
}

Expected<void> refuse_overlaps(std::vector<SafetensorsTensor>& tensors) {
  std::vector<const SafetensorsTensor*> order;
  for (const SafetensorsTensor& tensor : tensors)
    if (!tensor.data.empty()) order.push_back(&tensor);
  std::ranges::sort(order, {}, [](const SafetensorsTensor* t) { return t->data.data(); });
  for (size_t i = 1; i < order.size(); ++i)
    if (order[i - 1]->data.data() + order[i - 1]->data.size() > order[i]->data.data())
      return bad(fmt::format("tensors \"{}\" and \"{}\" overlap", order[i - 1]->name, order[i]->name));
  return {};
}

Expected<std::vector<SafetensorsTensor>> read_tensors(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(uint64_t))
    return bad(fmt::format("a file of {} bytes has no header", bytes.size()));
  const auto header_size = load_le<uint64_t>(bytes.data());
  if (header_size > kMaxHeaderBytes)
    return bad(fmt::format("a header of {} bytes is over the limit of {}: not a safetensors file?",
                           header_size, kMaxHeaderBytes));
  if (header_size > bytes.size() - sizeof(uint64_t))
    return bad(fmt::format("the header claims {} bytes of a file of {}: the file is cut short", header_size,
                           bytes.size()));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof(uint64_t), header_size);
  const std::span<const std::byte> data = bytes.subspan(sizeof(uint64_t) + header_size);
  auto header = parse_json(text, kHeaderLimits);
  if (!header) return bad("the header: " + header.error().message);
  if (!header->is_object()) return bad("the header is not a JSON object");
  if (header->get_object().size() > kMaxTensors)
    return bad(fmt::format("{} tensors are over the limit of {}", header->get_object().size(), kMaxTensors));
  std::vector<SafetensorsTensor> tensors;
  for (const auto& [name, entry] : header->get_object())
    if (name != "__metadata__") tensors.push_back(MR_TRY(read_tensor(name, entry, data)));
  MR_TRY(refuse_overlaps(tensors));
  return tensors;
}

class Files final : public SafetensorsFiles {
 public:
  const std::vector<SafetensorsTensor>& tensors() const override { return tensors_; }
  const std::vector<MappedFile>& mappings() const override { return mappings_; }
  std::vector<SafetensorsTensor> tensors_;
  std::vector<MappedFile> mappings_;

  Expected<std::vector<SafetensorsTensor>> map_file(const std::filesystem::path& path) {
    mappings_.push_back(MR_TRY(MappedFile::open(path)));
    auto tensors = read_tensors(mappings_.back().bytes());
    if (!tensors) tensors.error().message = fmt::format("{}: {}", path.string(), tensors.error().message);
    return tensors;
  }
  Expected<void> open_shards(const std::filesystem::path& folder, const std::filesystem::path& index_path);
};

// weight_map {tensor: shard} as {shard: tensors in it}. A shard is a plain file name, no way out of the
// folder, with the ending by which is_part_of_checkpoint() knows it (pack.cc).
Expected<std::map<std::string, size_t>> read_index(const std::filesystem::path& path,
                                                   std::unordered_map<std::string, std::string>& shard_of) {
  const std::string text = MR_TRY(read_file(path, kMaxHeaderBytes));
  auto index = parse_json(text, kHeaderLimits);
  if (!index) return bad(fmt::format("{}: {}", path.string(), index.error().message));
  const json::value* map = index->is_object() ? field_of(index->get_object(), "weight_map") : nullptr;
  if (map == nullptr || !map->is_object()) return bad(fmt::format("{} has no weight_map", path.string()));
  std::map<std::string, size_t> shards;
  for (const auto& [name, shard] : map->get_object()) {
    if (!shard.is_string())
      return bad(
          fmt::format("{}: the shard of \"{}\" is not a string", path.string(), std::string_view(name)));
    const std::string file(shard.get_string());
    if (file.empty() || file.find('/') != std::string::npos || file.find('\0') != std::string::npos ||
        file == "." || file == "..")
      return bad(fmt::format("{}: \"{}\" is not a plain file name", path.string(), file.substr(0, 200)));
    if (!file.ends_with(".safetensors"))
      return bad(fmt::format("{}: \"{}\" is not a .safetensors file", path.string(), file.substr(0, 200)));
    ++shards[file];
    shard_of.emplace(std::string(name), file);
  }
  if (shards.size() > kMaxShards)
    return bad(fmt::format("{} names {} shards; at most {}", path.string(), shards.size(), kMaxShards));
  return shards;
}

Expected<void> Files::open_shards(const std::filesystem::path& folder,
                                  const std::filesystem::path& index_path) {
  std::unordered_map<std::string, std::string> shard_of;
  const auto shards = MR_TRY(read_index(index_path, shard_of));
  for (const auto& [shard, expected_count] : shards) {
    size_t count = 0;
    for (SafetensorsTensor& tensor : MR_TRY(map_file(folder / shard))) {
      const auto entry = shard_of.find(tensor.name);
      if (entry == shard_of.end() || entry->second != shard)
        return bad(fmt::format("shard {} holds tensor \"{}\", which the index {}", shard, tensor.name,
                               entry == shard_of.end() ? "does not name" : "places in " + entry->second));
      ++count;
      tensors_.push_back(std::move(tensor));
    }
    if (count != expected_count)
      return bad(fmt::format("shard {} holds {} tensors; the index names {}", shard, count, expected_count));
  }
  return {};
}

}  // namespace

Expected<std::shared_ptr<const SafetensorsFiles>> SafetensorsFiles::open_folder(
    const std::filesystem::path& folder) {
  auto files = std::make_shared<Files>();
  std::error_code ignored;
  const auto index = folder / "model.safetensors.index.json";
  if (std::filesystem::exists(index, ignored)) {
    MR_TRY(files->open_shards(folder, index));
  } else {
    files->tensors_ = MR_TRY(files->map_file(folder / "model.safetensors"));
  }
  return files;
}

Expected<std::shared_ptr<const SafetensorsFiles>> SafetensorsFiles::parse(std::span<const std::byte> bytes) {
  auto files = std::make_shared<Files>();
  files->tensors_ = MR_TRY(read_tensors(bytes));
  return files;
}

}  // namespace millrace::model
