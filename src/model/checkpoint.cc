#include "model/internal/checkpoint.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "base/file.h"
#include "base/granted_memory.h"
#include "base/json.h"
#include "base/log.h"
#include "base/utf8.h"
#include "model/internal/json_fields.h"

namespace millrace::model {
namespace {

constexpr size_t kMaxJsonFileBytes = size_t{64} << 20;
constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

SourceTensor from_shape(std::string name, std::span<const int64_t> shape_outer_first, GgmlType type,
                        SourceBytes data) {
  SourceTensor tensor{
      .name = std::move(name), .rows = 1, .columns = 1, .type = type, .data = std::move(data)};
  tensor.shape = fmt::format("[{}]", fmt::join(shape_outer_first, ", "));
  for (size_t i = 0; i < shape_outer_first.size(); ++i) {
    (i + 1 == shape_outer_first.size() ? tensor.columns : tensor.rows) *= shape_outer_first[i];
    if (i + 2 < shape_outer_first.size() && shape_outer_first[i] != 1) tensor.stacked = true;
  }
  return tensor;
}

// Which file holds which bytes. From half of our memory on, a checkpoint's pages are not kept.
class Files {
 public:
  Expected<void> add(const MappedFile& mapping, Checkpoint& out) {
    files_.push_back(MR_TRY(SourceFile::of(mapping)));
    out.files.push_back(files_.back());
    bytes_ += mapping.bytes().size();
    return {};
  }
  void sort() {
    std::ranges::sort(files_, {}, [](const auto& file) { return file->mapping.data(); });
    read_once = bytes_ > granted_memory().total_bytes / 2;
  }
  SourceBytes find(std::span<const std::byte> bytes) const {
    auto after = std::ranges::upper_bound(files_, bytes.data(), {},
                                          [](const auto& file) { return file->mapping.data(); });
    if (after == files_.begin()) return {bytes, nullptr};
    return {bytes, *--after};
  }
  bool read_once = false;

 private:
  std::vector<std::shared_ptr<const SourceFile>> files_;
  uint64_t bytes_ = 0;
};

Expected<void> add_gguf_tensors(const GgufFile& gguf, Checkpoint& out) {
  Files files;
  if (gguf.mapping() != nullptr) MR_TRY(files.add(*gguf.mapping(), out));
  files.sort();
  for (const GgufTensor& tensor : gguf.tensors()) {
    std::vector<int64_t> shape(tensor.shape.rbegin(), tensor.shape.rend());
    SourceTensor source = from_shape(tensor.name, shape, tensor.type, files.find(tensor.data));
    source.read_once = files.read_once;
    out.tensors.emplace(tensor.name, std::move(source));
  }
  return {};
}

GgmlType layout_of(SafetensorsType type) {
  return type == SafetensorsType::f16    ? GgmlType::f16
         : type == SafetensorsType::bf16 ? GgmlType::bf16
                                         : GgmlType::f32;
}

// FP8 weights X.weight have their factors in X.weight_scale_inv (which multiplies, whatever its name says).
Expected<void> join_fp8_factors(Checkpoint& out) {
  constexpr std::string_view kSuffix = "_scale_inv";
  std::vector<std::string> factors;
  for (const auto& [name, tensor] : out.tensors)
    if (name.ends_with(kSuffix)) factors.push_back(name);
  for (const std::string& name : factors) {
    const auto weight = out.tensors.find(name.substr(0, name.size() - kSuffix.size()));
    if (weight == out.tensors.end() || !weight->second.fp8)
      continue;  // check() will say that it has no place
    const SourceTensor& source = out.tensors.at(name);
    SourceTensor& tensor = weight->second;
    const int64_t rows = (tensor.rows + kFp8Block - 1) / kFp8Block,
                  columns = (tensor.columns + kFp8Block - 1) / kFp8Block;
    if (!source.readable || source.fp8 || source.rows != rows || source.columns != columns)
      return invalid(fmt::format("tensor \"{}\" has shape {}; blocks of 128 x 128 over {} ask for [{}, {}]",
                                 name, source.shape, tensor.shape, rows, columns));
    tensor.readable = true;
    tensor.factor_type = source.type;
    tensor.factors = source.data;
    out.tensors.erase(name);
  }
  return {};
}

Expected<void> add_safetensors(const SafetensorsFiles& safetensors, Checkpoint& out) {
  Files files;
  for (const MappedFile& mapping : safetensors.mappings()) MR_TRY(files.add(mapping, out));
  files.sort();
  out.tensors.reserve(safetensors.tensors().size());
  for (const SafetensorsTensor& tensor : safetensors.tensors()) {
    SourceTensor source =
        from_shape(tensor.name, tensor.shape, layout_of(tensor.type), files.find(tensor.data));
    source.read_once = files.read_once;
    source.fp8 = tensor.type == SafetensorsType::f8_e4m3;
    source.readable =
        tensor.type != SafetensorsType::other && !source.fp8;  // FP8: once its factors are found
    if (tensor.type == SafetensorsType::other)
      source.shape = fmt::format("{} {}", tensor.dtype, source.shape);
    if (!out.tensors.emplace(tensor.name, std::move(source)).second)
      return fail(Code::data_loss, fmt::format("tensor \"{}\" occurs in two shards", tensor.name));
  }
  return join_fp8_factors(out);
}

// The file's text, or "" if it is not there.
Expected<std::string> read_optional(const std::filesystem::path& path, size_t max_bytes) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::string();
  return read_file(path, max_bytes);
}

// chat_template.jinja, else tokenizer_config.json's "chat_template": a string, or a list of named ones of
// which "default" is taken (the first if none has that name).
Expected<std::string> read_chat_template(const std::filesystem::path& folder) {
  if (auto text = MR_TRY(read_optional(folder / "chat_template.jinja", kMaxTemplateBytes)); !text.empty())
    return text;
  const auto path = folder / "tokenizer_config.json";
  const std::string config = MR_TRY(read_optional(path, kMaxJsonFileBytes));
  if (config.empty()) return std::string();
  auto parsed = parse_json(config);
  if (!parsed) return invalid(fmt::format("{}: {}", path.string(), parsed.error().message));
  if (!parsed->is_object()) return invalid(fmt::format("{} is not a JSON object", path.string()));
  const json::value* value = field_of(parsed->get_object(), "chat_template");
  if (value == nullptr) return std::string();
  if (value->is_array()) {
    std::string chosen;
    for (const json::value& entry : value->get_array()) {
      if (!entry.is_object())
        return invalid(fmt::format("{}: a chat_template entry is not an object", path.string()));
      const std::string name = MR_TRY(read_text(entry.get_object(), "name", ""));
      std::string source = MR_TRY(read_text(entry.get_object(), "template", ""));
      if (name == "default") return source;
      if (chosen.empty()) chosen = std::move(source);
    }
    return chosen;
  }
  return read_text(parsed->get_object(), "chat_template");
}

// Converters drop MTP layers and leave the config as it was.
void forget_absent_mtp(Checkpoint& checkpoint) {
  ModelConfig& config = checkpoint.config;
  if (config.mtp_layers == 0) return;
  const std::string prefix =
      fmt::format("{}.{}.", checkpoint.is_gguf ? "blk" : "model.layers", config.layers);
  for (const auto& [name, tensor] : checkpoint.tensors)
    if (name.starts_with(prefix)) return;
  log(LogLevel::info, "model", "the config has {} MTP layers and the checkpoint none", config.mtp_layers);
  config.mtp_layers = 0;
}

Expected<Checkpoint> open_folder(const std::filesystem::path& folder) {
  Checkpoint out;
  const auto config_path = folder / "config.json";
  const std::string config = MR_TRY(read_file(config_path, kMaxJsonFileBytes));
  const std::string generation = MR_TRY(read_optional(folder / "generation_config.json", kMaxJsonFileBytes));
  auto parsed = config_from_hugging_face(config, generation);
  if (!parsed) {
    parsed.error().message = fmt::format("{}: {}", config_path.string(), parsed.error().message);
    return std::unexpected(std::move(parsed).error());
  }
  out.config = std::move(*parsed);
  out.config.name = utf8_repair(std::filesystem::weakly_canonical(folder).filename().string());
  out.safetensors = MR_TRY(SafetensorsFiles::open_folder(folder));
  MR_TRY(add_safetensors(*out.safetensors, out));
  forget_absent_mtp(out);
  out.tokenizer = MR_TRY(tokenizer_from_hugging_face(folder));
  out.chat_template = MR_TRY(read_chat_template(folder));
  return out;
}

// The tensors that a plan reads, each looked up as it is visited. The first error stays.
struct TensorsOfPlan {
  const Checkpoint& checkpoint;
  std::unordered_set<std::string_view> used;
  Expected<void> status;

  template <class Result, class Tensor>
  void note(const Result& found, const Tensor& tensor_of) {
    if (found) {
      used.insert(tensor_of(*found)->name);
    } else if (status) {
      status = std::unexpected(found.error());
    }
  }
  void tensor(const TensorName& name, int64_t rows, int64_t columns) {
    note(checkpoint.find(name, rows, columns), [](const SourceTensor* t) { return t; });
  }
  void embed(const PlannedEmbed& m) { tensor(m.tensor, m.vocab, m.width); }
  void gain(const PlannedGain& g) { tensor(g.tensor, 1, g.width); }
  void linear(const PlannedLinear& l) {
    for (const PlannedPart& part : l.parts) {
      note(checkpoint.find_part(part, l.k), [](const Checkpoint::Found& f) { return f.tensor; });
      if (l.bias) tensor(part.bias, 1, part.rows);
    }
  }
  void experts(const PlannedLinear& l, int count) {
    for (int e = 0; e < count && status; ++e) linear(l.of_expert(e));
  }
  void head(const PlannedHead& m) { linear(m.head); }
};

// Tensors that carry no weights of their own: tables that the config gives too, and a head that a tied config
// overrides.
bool is_harmless(std::string_view name, const ModelConfig& config) {
  return name.ends_with("rotary_emb.inv_freq") || name == "rope_freqs.weight" ||
         (config.tied_embeddings && name == "lm_head.weight");
}

// The name of what a Checkpoint::Copy repeats, in the checkpoint's own spelling, so that the plan needs it
// too. Empty: it is none.
std::string_view original_of_mtp_copy(std::string_view name, bool gguf, bool tied) {
  if (gguf) {
    if (name.ends_with(".nextn.shared_head_head.weight")) return tied ? "token_embd.weight" : "output.weight";
    return name.ends_with(".nextn.embed_tokens.weight") ? "token_embd.weight" : "";
  }
  if (!name.starts_with("model.layers.")) return "";
  if (name.ends_with(".shared_head.head.weight"))
    return tied ? "model.embed_tokens.weight" : "lm_head.weight";
  return name.ends_with(".embed_tokens.weight") ? "model.embed_tokens.weight" : "";
}

// Bytes [begin, end) of both, in pieces.
Expected<bool> equal(const SourceBytes& one, const SourceBytes& other, uint64_t begin, uint64_t end,
                     bool read_once) {
  constexpr uint64_t kPiece = 256 * 1024;
  auto a = MR_TRY(SourceReader::open(one, begin, end)), b = MR_TRY(SourceReader::open(other, begin, end));
  if (read_once) a.forget();
  for (uint64_t at = begin; at < end; at += kPiece) {
    const uint64_t count = std::min(kPiece, end - at);
    if (std::memcmp(MR_TRY(a.read(at, count)), MR_TRY(b.read(at, count)), count) != 0) return false;
  }
  return true;
}

std::unexpected<Status> differs(const SourceTensor& copy, const SourceTensor& original) {
  return fail(Code::unimplemented,
              fmt::format("tensor \"{}\" differs from \"{}\"; an MTP layer shares the model's", copy.name,
                          original.name));
}

}  // namespace

Expected<const SourceTensor*> Checkpoint::find(const TensorName& name, int64_t rows, int64_t columns,
                                               int64_t slabs) const {
  const std::string& wanted = spelling(name);
  const auto found = tensors.find(wanted);
  const auto expected = [&] {
    if (slabs > 0) return fmt::format("[{}, {}, {}]", slabs, rows / slabs, columns);
    return rows == 1 ? fmt::format("[{}]", columns) : fmt::format("[{}, {}]", rows, columns);
  };
  if (found == tensors.end())
    return invalid(
        fmt::format("the checkpoint has no tensor \"{}\" (expected shape {})", wanted, expected()));
  const SourceTensor& tensor = found->second;
  if (!tensor.readable && tensor.fp8)
    return invalid(fmt::format("tensor \"{0}\" is FP8 and the checkpoint has no \"{0}_scale_inv\"", wanted));
  if (!tensor.readable)
    return fail(Code::unimplemented,
                fmt::format("tensor \"{}\" is {}; F32, F16, BF16 and FP8 in blocks of 128 x 128 are read",
                            wanted, tensor.shape));
  const bool as_expected = slabs > 0 ? tensor.shape == expected() : !tensor.stacked;
  if (tensor.rows != rows || tensor.columns != columns || !as_expected)
    return invalid(
        fmt::format("tensor \"{}\" has shape {}; the config asks for {}", wanted, tensor.shape, expected()));
  return &tensor;
}

Expected<Checkpoint::Found> Checkpoint::find_part(const PlannedPart& part, int k) const {
  const TensorView* chosen = nullptr;
  for (const TensorView& view : part.weight) {
    const std::string& name = spelling(view.tensor);
    if (name.empty()) continue;
    const bool there = tensors.contains(name);
    if (chosen == nullptr || there) chosen = &view;  // if none is there, the error names the first
    if (there) break;
  }
  if (chosen == nullptr)
    return invalid(
        fmt::format("{} files have no tensor for a part of this model", is_gguf ? "GGUF" : "safetensors"));
  const int64_t rows = chosen->rows > 0 ? chosen->rows : part.rows,
                columns = chosen->columns > 0 ? chosen->columns : k;
  const SourceTensor* tensor = MR_TRY(find(chosen->tensor, rows, columns, chosen->slabs));
  return Found{tensor, chosen};
}

Expected<void> check_copy(const Checkpoint::Copy& copy, uint64_t begin, uint64_t end) {
  const auto& [tensor, original] = copy;
  bool same = MR_TRY(equal(tensor->data, original->data, begin, end, tensor->read_once));
  if (same && begin == 0)
    same = MR_TRY(equal(tensor->factors, original->factors, 0, tensor->factors.size(), false));
  return same ? Expected<void>() : differs(*tensor, *original);
}

Expected<std::vector<Checkpoint::Copy>> Checkpoint::check(const Plan& plan) const {
  std::vector<Copy> copies;
  TensorsOfPlan wanted{.checkpoint = *this, .used = {}, .status = {}};
  wanted.used.reserve(tensors.size());
  each_weight(plan, wanted);
  MR_TRY(wanted.status);
  std::vector<std::string_view> unknown;
  for (const auto& [name, tensor] : tensors) {
    if (wanted.used.contains(name)) continue;
    const auto original = original_of_mtp_copy(name, is_gguf, config.tied_embeddings);
    if (!original.empty() && config.mtp_layers > 0) {
      copies.push_back({&tensor, &tensors.at(std::string(original))});
    } else if (is_harmless(name, config)) {
      log(LogLevel::info, "model", "ignoring tensor {}", name);
    } else {
      unknown.push_back(name);
    }
  }
  if (!unknown.empty()) {
    const std::string first(*std::ranges::min_element(unknown));
    return invalid(fmt::format(
        "tensor \"{}\" of shape {}{} no place in a {} model: the config and the weights disagree", first,
        tensors.at(first).shape,
        unknown.size() > 1 ? fmt::format(" and {} others have", unknown.size() - 1) : std::string(" has"),
        architecture_name(config.architecture)));
  }
  for (const auto& [copy, original] : copies) {
    MR_TRY(find({copy->name, copy->name}, original->rows, original->columns));
    if (copy->type != original->type || copy->fp8 != original->fp8 ||
        copy->data.size() != original->data.size() || copy->factor_type != original->factor_type ||
        copy->factors.size() != original->factors.size())
      return differs(*copy, *original);
  }
  std::ranges::sort(copies, {}, [](const Copy& copy) -> const std::string& { return copy.tensor->name; });
  return copies;
}

Expected<Checkpoint> checkpoint_from_gguf(std::shared_ptr<const GgufFile> file) {
  Checkpoint out;
  out.is_gguf = true;
  out.config = MR_TRY(config_from_gguf(*file));
  out.chat_template = file->text("tokenizer.chat_template").value_or("");
  if (out.chat_template.size() > kMaxTemplateBytes)
    return invalid(fmt::format("the chat template of {} bytes is over the limit of {}",
                               out.chat_template.size(), kMaxTemplateBytes));
  MR_TRY(add_gguf_tensors(*file, out));
  forget_absent_mtp(out);
  out.gguf = std::move(file);
  return out;
}

Expected<Checkpoint> open_checkpoint(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status))
    return fail(Code::not_found, fmt::format("no checkpoint at {}", path.string()));
  if (std::filesystem::is_directory(status)) return open_folder(path);
  Checkpoint out = MR_TRY(checkpoint_from_gguf(MR_TRY(GgufFile::open(path))));
  if (out.config.name.empty()) out.config.name = utf8_repair(path.stem().string());
  out.tokenizer = MR_TRY(tokenizer_from_gguf(*out.gguf));
  // GGUF has no sampling defaults; a generation_config.json beside the file gives them.
  const std::string generation =
      MR_TRY(read_optional(path.parent_path() / "generation_config.json", kMaxJsonFileBytes));
  if (!generation.empty()) {
    MR_TRY(apply_generation_config(generation, out.config));
    MR_TRY(out.config.validate());
  }
  return out;
}

}  // namespace millrace::model
