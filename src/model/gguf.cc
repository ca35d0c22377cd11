#include "model/gguf.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <utility>

#include "base/file.h"
#include "model/internal/float_formats.h"

namespace millrace::model {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxKeys = 65536;     // real files have some dozens
constexpr uint64_t kMaxTensors = 65536;  // the largest known have some thousands
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 256;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kMaxAlignment = 1u << 20;

enum class ValueType : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

// Bytes of a fixed-size value; 0 for strings, arrays and unknown types.
size_t value_bytes(ValueType type) {
  switch (type) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean:
      return 1;
    case ValueType::u16:
    case ValueType::i16:
      return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32:
      return 4;
    case ValueType::u64:
    case ValueType::i64:
    case ValueType::f64:
      return 8;
    default:
      return 0;
  }
}

bool is_integer(ValueType type) {
  return value_bytes(type) > 0 && type != ValueType::f32 && type != ValueType::f64;
}

std::optional<int64_t> load_integer(ValueType type, const std::byte* data) {
  switch (type) {
    case ValueType::u8:
      return load_le<uint8_t>(data);
    case ValueType::i8:
      return load_le<int8_t>(data);
    case ValueType::u16:
      return load_le<uint16_t>(data);
    case ValueType::i16:
      return load_le<int16_t>(data);
    case ValueType::u32:
      return load_le<uint32_t>(data);
    case ValueType::i32:
      return load_le<int32_t>(data);
    case ValueType::boolean:
      return load_le<uint8_t>(data) != 0;
    case ValueType::i64:
      return load_le<int64_t>(data);
    case ValueType::u64: {
      const auto value = load_le<uint64_t>(data);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> load_number(ValueType type, const std::byte* data) {
  switch (type) {
    case ValueType::f32:
      return load_le<float>(data);
    case ValueType::f64:
      return load_le<double>(data);
    case ValueType::u64:
      return static_cast<double>(load_le<uint64_t>(data));
    default: {
      const auto value = load_integer(type, data);
      return value ? std::optional<double>(static_cast<double>(*value)) : std::nullopt;
    }
  }
}

// Walks the bytes; every read is checked against what is left, so no sum of offsets can wrap.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}
  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }

  Expected<const std::byte*> take(uint64_t count, std::string_view what) {
    if (count > left())
      return fail(Code::data_loss,
                  fmt::format("GGUF: {} needs {} bytes at offset {}, but the file ends {} bytes later", what,
                              count, position_, left()));
    const std::byte* data = bytes_.data() + position_;
    position_ += count;
    return data;
  }
  template <class T>
  Expected<T> read(std::string_view what) {
    return load_le<T>(MR_TRY(take(sizeof(T), what)));
  }
  Expected<std::string_view> read_string(std::string_view what, uint64_t max_bytes) {
    const uint64_t size = MR_TRY(read<uint64_t>(what));
    if (size > max_bytes)
      return fail(Code::data_loss, fmt::format("GGUF: {} of {} bytes at offset {} is over the limit of {}",
                                               what, size, position_, max_bytes));
    const std::byte* data = MR_TRY(take(size, what));
    return std::string_view(reinterpret_cast<const char*>(data), size);
  }

 private:
  std::span<const std::byte> bytes_;
  size_t position_ = 0;
};

// A metadata value: where it stands. For an array, `type` is its elements' type and `count` their number.
struct Value {
  ValueType type = ValueType::u8;
  bool is_array = false;
  uint64_t count = 1;
  const std::byte* data = nullptr;  // a string's length field; an array's first element
};

Expected<Value> read_value(Cursor& cursor, std::string_view key) {
  Value value{.type = static_cast<ValueType>(MR_TRY(cursor.read<uint32_t>(key)))};
  if (value.type == ValueType::array) {
    value.is_array = true;
    value.type = static_cast<ValueType>(MR_TRY(cursor.read<uint32_t>(key)));
    value.count = MR_TRY(cursor.read<uint64_t>(key));
  }
  const size_t size = value_bytes(value.type);
  if (size == 0 && value.type != ValueType::string)
    return fail(Code::data_loss,
                fmt::format("GGUF: key \"{}\" has {} type {}, which is not known", key,
                            value.is_array ? "element" : "value", std::to_underlying(value.type)));
  // Each element takes at least `least` bytes, so a count that passes here keeps the loop below bounded by
  // the file.
  const size_t least = size > 0 ? size : sizeof(uint64_t);
  if (value.count > cursor.left() / least)
    return fail(Code::data_loss,
                fmt::format("GGUF: key \"{}\" claims {} elements, but only {} bytes are left", key,
                            value.count, cursor.left()));
  value.data = MR_TRY(cursor.take(size * value.count, key));
  if (size == 0)
    for (uint64_t i = 0; i < value.count; ++i)
      MR_TRY(cursor.read_string(key, std::numeric_limits<uint64_t>::max()));
  return value;
}

struct TypeTraits {
  int64_t elements;
  int64_t bytes;
};
TypeTraits type_traits(GgmlType type) {
  switch (type) {
    case GgmlType::f32:
      return {1, 4};
    case GgmlType::f16:
    case GgmlType::bf16:
      return {1, 2};
    case GgmlType::q4_0:
      return {32, 18};
    case GgmlType::q4_1:
      return {32, 20};
    case GgmlType::q5_0:
      return {32, 22};
    case GgmlType::q5_1:
      return {32, 24};
    case GgmlType::q8_0:
      return {32, 34};
    case GgmlType::q4_k:
      return {256, 144};
    case GgmlType::q5_k:
      return {256, 176};
    case GgmlType::q6_k:
      return {256, 210};
  }
  return {0, 0};
}

class File final : public GgufFile {
 public:
  MappedFile mapped_file;  // empty when the bytes are the caller's

  Expected<void> read(std::span<const std::byte> bytes);
  const MappedFile* mapping() const override {
    return mapped_file.bytes().empty() ? nullptr : &mapped_file;
  }

  std::optional<std::string_view> text(std::string_view key) const override {
    const Value* value = find(key);
    if (value == nullptr || value->is_array || value->type != ValueType::string) return std::nullopt;
    return string_at(value->data);
  }
  std::optional<int64_t> integer(std::string_view key) const override {
    const Value* value = find(key);
    if (value == nullptr || value->is_array) return std::nullopt;
    return load_integer(value->type, value->data);
  }
  std::optional<double> number(std::string_view key) const override {
    const Value* value = find(key);
    if (value == nullptr || value->is_array) return std::nullopt;
    return load_number(value->type, value->data);
  }
  std::optional<bool> boolean(std::string_view key) const override {
    const Value* value = find(key);
    if (value == nullptr || value->is_array || value->type != ValueType::boolean) return std::nullopt;
    return load_le<uint8_t>(value->data) != 0;
  }
  std::optional<std::vector<std::string_view>> texts(std::string_view key) const override {
    const Value* value = find(key);
    if (value == nullptr || !value->is_array || value->type != ValueType::string) return std::nullopt;
    std::vector<std::string_view> out;
    out.reserve(value->count);
    const std::byte* at = value->data;
    for (uint64_t i = 0; i < value->count; ++i) {
      out.push_back(string_at(at));
      at += sizeof(uint64_t) + out.back().size();
    }
    return out;
  }
  std::optional<std::vector<int64_t>> integers(std::string_view key) const override {
    const Value* value = find(key);
    if (value == nullptr || !value->is_array || !is_integer(value->type)) return std::nullopt;
    std::vector<int64_t> out(value->count);
    for (uint64_t i = 0; i < value->count; ++i) {
      const auto element = load_integer(value->type, value->data + i * value_bytes(value->type));
      if (!element) return std::nullopt;
      out[i] = *element;
    }
    return out;
  }
  std::optional<std::vector<float>> numbers(std::string_view key) const override {
    const Value* value = find(key);
    if (value == nullptr || !value->is_array || value_bytes(value->type) == 0) return std::nullopt;
    std::vector<float> out(value->count);
    for (uint64_t i = 0; i < value->count; ++i) {
      const auto element = load_number(value->type, value->data + i * value_bytes(value->type));
      if (!element) return std::nullopt;
      out[i] = static_cast<float>(*element);
    }
    return out;
  }
  const std::vector<GgufTensor>& tensors() const override { return tensors_; }
  const GgufTensor* tensor(std::string_view name) const override {
    const auto found = tensor_index_.find(name);
    return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
  }

 private:
  static std::string_view string_at(const std::byte* at) {
    return {reinterpret_cast<const char*>(at + sizeof(uint64_t)), load_le<uint64_t>(at)};
  }
  const Value* find(std::string_view key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
  }
  Expected<void> read_metadata(Cursor& cursor, uint64_t count);
  Expected<void> read_tensor(Cursor& cursor, uint64_t alignment, uint64_t& offset);
  Expected<void> place_tensors(std::span<const std::byte> data, const std::vector<uint64_t>& offsets);

  std::unordered_map<std::string_view, Value> values_;  // keys and values are views into the file
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> tensor_index_;  // keys are views into the file
};

Expected<void> File::read_metadata(Cursor& cursor, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const std::string_view key = MR_TRY(cursor.read_string("a metadata key", kMaxKeyBytes));
    const Value value = MR_TRY(read_value(cursor, key));
    if (!values_.emplace(key, value).second)
      return fail(Code::data_loss, fmt::format("GGUF: key \"{}\" occurs twice", key));
  }
  return {};
}

// One directory entry. Leaves data as a span of the right size at no place yet; its offset goes to `offset`.
Expected<void> File::read_tensor(Cursor& cursor, uint64_t alignment, uint64_t& offset) {
  const std::string_view name = MR_TRY(cursor.read_string("a tensor name", kMaxTensorNameBytes));
  GgufTensor tensor;
  tensor.name = name;
  const uint32_t dimensions = MR_TRY(cursor.read<uint32_t>(name));
  if (dimensions == 0 || dimensions > kMaxDimensions)
    return fail(Code::data_loss, fmt::format("GGUF: tensor \"{}\" has {} dimensions; 1 to {} are possible",
                                             name, dimensions, kMaxDimensions));
  uint64_t elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const uint64_t size = MR_TRY(cursor.read<uint64_t>(name));
    // 2^48 elements is far above any file and far below what overflows when multiplied by a block's bytes.
    if (size == 0 || size > (uint64_t{1} << 48) / elements)
      return fail(
          Code::data_loss,
          fmt::format("GGUF: tensor \"{}\" has an impossible size {} in dimension {}", name, size, i));
    elements *= size;
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  tensor.type = static_cast<GgmlType>(MR_TRY(cursor.read<uint32_t>(name)));
  const TypeTraits traits = type_traits(tensor.type);
  if (traits.elements == 0)
    return fail(
        Code::unimplemented,
        fmt::format(
            "GGUF: tensor \"{}\" has type {}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, "
            "Q4_K, Q5_K and Q6_K",
            name, std::to_underlying(tensor.type)));
  if (tensor.shape[0] % traits.elements != 0)
    return fail(Code::data_loss,
                fmt::format("GGUF: tensor \"{}\" has rows of {} elements, not a multiple of its type's {}",
                            name, tensor.shape[0], traits.elements));
  offset = MR_TRY(cursor.read<uint64_t>(name));
  if (offset % alignment != 0)
    return fail(Code::data_loss,
                fmt::format("GGUF: tensor \"{}\" stands at offset {}, not a multiple of the alignment {}",
                            name, offset, alignment));
  if (!tensor_index_.emplace(name, tensors_.size()).second)
    return fail(Code::data_loss, fmt::format("GGUF: tensor \"{}\" occurs twice", name));
  const uint64_t size =
      elements / static_cast<uint64_t>(traits.elements) * static_cast<uint64_t>(traits.bytes);
  tensor.data = {static_cast<const std::byte*>(nullptr), size};
  tensors_.push_back(std::move(tensor));
  return {};
}

Expected<void> File::place_tensors(std::span<const std::byte> data, const std::vector<uint64_t>& offsets) {
  std::vector<size_t> order(tensors_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
  uint64_t end = 0;  // of the tensor before, in file order
  for (const size_t i : order) {
    GgufTensor& tensor = tensors_[i];
    const uint64_t size = tensor.data.size();
    if (offsets[i] > data.size() || size > data.size() - offsets[i])
      return fail(Code::data_loss, fmt::format("GGUF: tensor \"{}\" needs {} bytes at offset {} of the data, "
                                               "which has {} bytes: the file is cut short",
                                               tensor.name, size, offsets[i], data.size()));
    if (offsets[i] < end)
      return fail(Code::data_loss,
                  fmt::format("GGUF: tensor \"{}\" at offset {} overlaps the one before, which ends at {}",
                              tensor.name, offsets[i], end));
    end = offsets[i] + size;
    tensor.data = data.subspan(offsets[i], size);
  }
  return {};
}

Expected<void> File::read(std::span<const std::byte> bytes) {
  Cursor cursor(bytes);
  const auto magic = MR_TRY(cursor.read<uint32_t>("the magic number"));
  if (magic != kMagic)
    return invalid(fmt::format("not a GGUF file: it starts with {:#010x}, not \"GGUF\"", magic));
  const auto version = MR_TRY(cursor.read<uint32_t>("the version"));
  if (version != 2 && version != 3)
    return fail(Code::unimplemented,
                (version & 0xFFFFu) == 0
                    ? std::string("GGUF: a big-endian file; only little-endian ones are read")
                    : fmt::format("GGUF: version {}; versions 2 and 3 are read", version));
  const auto tensor_count = MR_TRY(cursor.read<uint64_t>("the tensor count"));
  const auto key_count = MR_TRY(cursor.read<uint64_t>("the key count"));
  if (tensor_count > kMaxTensors)
    return fail(Code::data_loss,
                fmt::format("GGUF: {} tensors are over the limit of {}", tensor_count, kMaxTensors));
  if (key_count > kMaxKeys)
    return fail(Code::data_loss,
                fmt::format("GGUF: {} metadata keys are over the limit of {}", key_count, kMaxKeys));
  MR_TRY(read_metadata(cursor, key_count));
  if (const auto splits = integer("split.count"); splits.value_or(0) > 1)
    return fail(
        Code::unimplemented,
        fmt::format(
            "GGUF: this is one of {} parts of a split file; join them first (llama-gguf-split --merge)",
            *splits));

  uint64_t alignment = 32;
  if (find("general.alignment") != nullptr) {
    alignment = static_cast<uint64_t>(integer("general.alignment").value_or(0));
    if (alignment == 0 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0)
      return fail(Code::data_loss,
                  fmt::format("GGUF: general.alignment is {}; a power of two up to {} is needed", alignment,
                              kMaxAlignment));
  }
  std::vector<uint64_t> offsets(tensor_count <= bytes.size() ? tensor_count : 0);
  if (offsets.size() != tensor_count)
    return fail(Code::data_loss,
                fmt::format("GGUF: {} tensors cannot fit into {} bytes", tensor_count, bytes.size()));
  for (uint64_t& offset : offsets) MR_TRY(read_tensor(cursor, alignment, offset));
  if (tensor_count == 0) return {};
  const uint64_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
  if (data_begin > bytes.size()) return fail(Code::data_loss, "GGUF: the file ends before its tensor data");
  return place_tensors(bytes.subspan(data_begin), offsets);
}

}  // namespace

Expected<std::shared_ptr<const GgufFile>> GgufFile::open(const std::filesystem::path& path) {
  auto file = std::make_shared<File>();
  file->mapped_file = MR_TRY(MappedFile::open(path));
  if (auto read = file->read(file->mapped_file.bytes()); !read) {
    read.error().message = fmt::format("{}: {}", path.string(), read.error().message);
    return std::unexpected(std::move(read).error());
  }
  return file;
}

Expected<std::shared_ptr<const GgufFile>> GgufFile::parse(std::span<const std::byte> bytes) {
  auto file = std::make_shared<File>();
  MR_TRY(file->read(bytes));
  return file;
}

int64_t ggml_block_elements(GgmlType type) { return type_traits(type).elements; }
int64_t ggml_block_bytes(GgmlType type) { return type_traits(type).bytes; }

}  // namespace millrace::model
