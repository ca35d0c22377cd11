// Packing: what is folded and rotated leaves the model as it was, both file formats give the same bytes, and
// what is wrong with a checkpoint is refused by name.
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <thread>

#include "base/file.h"
#include "model/fixtures/correlated_inputs.h"
#include "model/fixtures/float_forward.h"
#include "model/fixtures/tiny_checkpoint.h"
#include "model/internal/packed_layout.h"
#include "model/internal/plan_parts.h"
#include "model/internal/rotate.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

using fixtures::tiny_checkpoint;
using fixtures::tiny_config;
using fixtures::TinyCheckpoint;
using fixtures::TinyDtype;
using testing::HasSubstr;

constexpr TokenId kPrompt[] = {1, 200, 77, 31, 5, 256, 9, 130, 66, 12};

class Pack : public testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::path(testing::TempDir()) /
             fmt::format("millrace_pack_{}_{}", testing::UnitTest::GetInstance()->current_test_info()->name(),
                         ::getpid());
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  std::filesystem::path write(const TinyCheckpoint& checkpoint, TinyDtype dtype = TinyDtype::f32,
                              int shards = 1) const {
    const auto path = folder / "tiny";
    std::filesystem::remove_all(path);
    const auto written = fixtures::write_hugging_face(checkpoint, path, dtype, shards);
    EXPECT_TRUE(written.has_value()) << (written ? "" : written.error().message);
    return path;
  }
  std::shared_ptr<const PackedModel> pack(const std::filesystem::path& checkpoint, PackType type,
                                          int threads = 1) const {
    const auto path = folder / fmt::format("out.{}", static_cast<int>(type));
    const auto packed = pack_checkpoint(checkpoint, path, {.type = type, .threads = threads, .progress = {}});
    EXPECT_TRUE(packed.has_value()) << (packed ? "" : packed.error().message);
    if (!packed) return nullptr;
    auto model = PackedModel::open(path, {.verify_checksums = true});
    EXPECT_TRUE(model.has_value()) << (model ? "" : model.error().message);
    return model ? *model : nullptr;
  }
  std::string pack_error(const TinyCheckpoint& checkpoint, PackType type = PackType::int8) const {
    const auto packed =
        pack_checkpoint(write(checkpoint), folder / "bad", {.type = type, .threads = 1, .progress = {}});
    EXPECT_FALSE(std::filesystem::exists(folder / "bad"));
    return packed ? "" : packed.error().message;
  }
  std::filesystem::path folder;
};

// |a - b| / |b|
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

std::vector<ModelConfig> every_kind() {
  std::vector<ModelConfig> configs = {tiny_config(Architecture::llama), tiny_config(Architecture::qwen2),
                                      tiny_config(Architecture::qwen3)};
  ModelConfig biased = tiny_config(Architecture::llama);
  biased.qkv_bias = biased.o_bias = biased.mlp_bias = true;
  biased.tied_embeddings = false;
  configs.push_back(biased);
  return configs;
}

// The INT8 form differs from the float form by the rounding of its weights alone, since the forward pass here
// is in double: a step of 1/127 of a row's largest value is 0.7 % of its rms value (and BF16 embeddings 0.1
// %). Nine products on the way make sqrt(9) * 0.7 % = 2 %; twice that is allowed. A fold or a rotation that
// is missing on one side moves the logits by their own size.
TEST_F(Pack, RotationAndFoldsLeaveTheModelAsItWas) {
  for (const ModelConfig& config : every_kind()) {
    const auto checkpoint = write(tiny_checkpoint(config, 7));
    const auto plain = pack(checkpoint, PackType::float32), rotated = pack(checkpoint, PackType::int8);
    ASSERT_TRUE(plain && rotated);
    const auto expected = fixtures::float_forward(*plain, kPrompt),
               got = fixtures::float_forward(*rotated, kPrompt);
    const double off = distance(got, expected);
    EXPECT_LT(off, 0.04) << architecture_name(config.architecture) << (config.mlp_bias ? " with biases" : "");
    EXPECT_GT(off, 1e-5) << "the two forms are the same: nothing was quantised";
    RecordProperty(std::string(architecture_name(config.architecture)), std::to_string(off));
  }
}

TEST_F(Pack, CalibratedFormsHaveNamesOfTheirOwn) {
  const auto name =
      packed_file_name(write(tiny_checkpoint(tiny_config(Architecture::llama), 1)), PackType::int8).value();
  const auto packed = folder / "packed" / name;
  EXPECT_TRUE(calibrated_files(packed).empty()) << "no folder yet";
  std::filesystem::create_directories(packed.parent_path());
  const auto put = [&](const std::string& file, int age_s) {
    const auto path = packed.parent_path() / file;
    std::ofstream(path) << "x";
    std::filesystem::last_write_time(
        path, std::filesystem::file_time_type::clock::now() - std::chrono::seconds(age_s));
  };
  const std::string first = calibrated_file_name(name, 0xABC), second = calibrated_file_name(name, 0xDEF);
  EXPECT_THAT(first, testing::EndsWith(".int8.calibrated2-0000000000000abc.mrpack"));
  put(name, 0);
  put("other-" + first, 0);
  put(first + ".partial.old", 0);
  put(calibrated_file_name(name, 7) + ".partial", 5);
  put(calibrated_file_name(name, 7) + ".journal", 5);
  put(first, 30);
  put(second, 20);
  auto files = calibrated_files(packed);
  ASSERT_EQ(files.size(), 3u);
  EXPECT_EQ(files[0].path.filename(), second) << "the newest";
  EXPECT_EQ(files[1].path.filename(), first);
  EXPECT_TRUE(files[0].usable && files[1].usable);
  EXPECT_EQ(files[2].path.filename(), calibrated_file_name(name, 7));
  EXPECT_FALSE(files[2].usable);
  put(first, 10);
  EXPECT_EQ(calibrated_files(packed)[0].path.filename(), first);
}

// The head as the INT8 path has it, before it is rounded.
std::vector<float> exact_head(const TinyCheckpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config;
  std::vector<float> w = checkpoint.tensors.at("model.embed_tokens.weight").values;
  scale_columns(w.data(), config.vocab_size, config.hidden_size,
                checkpoint.tensors.at("model.norm.weight").values.data());
  rotate_columns(w.data(), config.vocab_size, config.hidden_size, stream_rotation(config));
  return w;
}

// Mean square of what the rounding of a linear's weights changes in its products with the rows x.
double product_error(const Linear& linear, const std::vector<float>& exact, const std::vector<float>& x) {
  const auto k = static_cast<size_t>(linear.k);
  double sum = 0;
  for (size_t channel = 0; channel < static_cast<size_t>(linear.n); ++channel) {
    std::vector<double> error(k);
    for (size_t j = 0; j < k; ++j) {
      const size_t tile = channel / 16 * (static_cast<size_t>(kernels::padded_k(linear.k)) / 64) + j / 64;
      const int8_t q = linear.s8.tiles[tile * 1024 + j % 64 / 4 * 64 + channel % 16 * 4 + j % 4];
      error[j] =
          static_cast<double>(exact[channel * k + j] - linear.s8.scale[channel] * static_cast<float>(q));
    }
    for (size_t row = 0; row < x.size(); row += k) {
      double off = 0;
      for (size_t j = 0; j < k; ++j) off += error[j] * static_cast<double>(x[row + j]);
      sum += off * off;
    }
  }
  return sum;
}

// Rounded for rows that lie near a few directions, a product of such rows is nearer to the float one.
TEST_F(Pack, ACalibratedProductIsNearerToTheFloatOne) {
  const ModelConfig config = tiny_config(Architecture::llama);
  const TinyCheckpoint source = tiny_checkpoint(config, 7);
  const auto checkpoint = write(source);
  const auto inputs = CalibrationInputs::create(folder, 1).value();
  const auto rows_of = [&](uint64_t seed) {
    return fixtures::correlated_rows(200, config.hidden_size, 9, 1, seed);
  };
  ASSERT_TRUE(fixtures::add_rows(*inputs, "head", 0, rows_of(2), config.hidden_size).has_value());
  const auto plain = pack(checkpoint, PackType::int8);
  ASSERT_TRUE(pack_checkpoint(checkpoint, folder / "calibrated",
                              {.threads = 1, .progress = {}, .calibration = inputs.get()})
                  .has_value());
  const auto calibrated = PackedModel::open(folder / "calibrated").value();
  EXPECT_NE(plain->fingerprint(), calibrated->fingerprint());
  EXPECT_EQ(plain->size_bytes(), calibrated->size_bytes());
  const auto head_of = [](const PackedModel& model) -> const Linear& {
    return std::get<HeadModule>(model.graph().modules.back()).head;
  };
  EXPECT_EQ(calibrated->section_at(head_of(*calibrated).s8.tiles), "head");
  EXPECT_EQ(calibrated->section_at(head_of(*calibrated).s8.scale), "");
  const std::vector<float> exact = exact_head(source), to_come = rows_of(3);
  const double off = product_error(head_of(*calibrated), exact, to_come),
               without = product_error(head_of(*plain), exact, to_come);
  fmt::print("square error of the calibrated head: {:.3f} of the plain one's\n", off / without);
  EXPECT_LT(off, 0.5 * without);
}

TEST_F(Pack, GraphsNameTheirWeights) {
  const auto checkpoint = write(tiny_checkpoint(tiny_config(Architecture::qwen3), 1));
  const auto model = pack(checkpoint, PackType::int8);
  ASSERT_TRUE(model);
  ASSERT_EQ(model->graph().modules.size(), 6u);
  const auto& embed = std::get<EmbedModule>(model->graph().modules[0]);
  EXPECT_NE(embed.bf16, nullptr);
  EXPECT_EQ(embed.vocab, 272);
  const auto& attention = std::get<AttentionModule>(model->graph().modules[1]);
  EXPECT_EQ(attention.norm_gain, nullptr);
  EXPECT_NE(attention.q_norm_gain, nullptr);
  EXPECT_EQ(attention.qkv.n, (4 + 2 + 2) * 32);
  EXPECT_EQ(attention.qkv.k, 96);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(attention.qkv.s8.tiles) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(attention.qkv.s8.scale) % 64, 0u);
  const auto& ffn = std::get<FfnModule>(model->graph().modules[4]);
  EXPECT_EQ(ffn.layer, 1);
  EXPECT_EQ(ffn.hadamard_block, 32);  // the largest power of two in 160
  const auto& head = std::get<HeadModule>(model->graph().modules[5]);
  EXPECT_EQ(head.head.n, 272);
  EXPECT_EQ(model->config().name, "tiny");
  EXPECT_EQ(model->config().eos, (std::vector<TokenId>{257, 256}));
  EXPECT_THAT(model->chat_template(), HasSubstr("add_generation_prompt"));
  EXPECT_EQ(model->tokenizer_spec().tokens.size() >= 256, true);
}

TEST_F(Pack, TiedHeadSharesTheEmbeddingInFloat) {
  const auto model = pack(write(tiny_checkpoint(tiny_config(Architecture::llama), 1)), PackType::float32);
  ASSERT_TRUE(model);
  const auto& embed = std::get<EmbedModule>(model->graph().modules.front());
  const auto& head = std::get<HeadModule>(model->graph().modules.back());
  EXPECT_EQ(embed.f32, head.head.f32);
  EXPECT_NE(head.norm_gain, nullptr);
}

std::map<std::string, uint64_t> weight_checksums(const std::filesystem::path& path) {
  const auto bytes = read_file(path, 1 << 28);
  PackedHeader header;
  std::memcpy(&header, bytes->data(), sizeof header);
  const auto directory =
      directory_from_json(std::string_view(*bytes).substr(header.directory_offset, header.directory_bytes));
  std::map<std::string, uint64_t> sums;
  for (const Section& section : directory->sections)
    if (section.name != "tokenizer") sums[section.name] = section.checksum;
  return sums;
}

TEST_F(Pack, BothFormatsGiveTheSameBytes) {
  for (const ModelConfig& config : every_kind()) {
    const TinyCheckpoint checkpoint = tiny_checkpoint(config, 3);
    const auto hugging_face = write(checkpoint, TinyDtype::f32, 3);
    const auto gguf = folder / "tiny.gguf";
    ASSERT_TRUE(fixtures::write_gguf(checkpoint, gguf).has_value());
    for (const PackType type : {PackType::int8, PackType::float32}) {
      ASSERT_TRUE(pack(hugging_face, type));
      const auto path = folder / fmt::format("out.{}", static_cast<int>(type));
      const auto expected = weight_checksums(path);
      const auto from_gguf = pack(gguf, type, 2);
      ASSERT_TRUE(from_gguf);
      EXPECT_EQ(weight_checksums(path), expected) << architecture_name(config.architecture);
      EXPECT_EQ(from_gguf->config().rms_norm_eps, config.rms_norm_eps);
      EXPECT_EQ(from_gguf->config().qkv_bias, config.qkv_bias);
    }
  }
}

TEST_F(Pack, ThreadsDoNotChangeTheBytes) {
  ModelConfig config = tiny_config(Architecture::llama);
  config.vocab_size = 1500;  // several jobs, the last one ragged
  const auto checkpoint = write(tiny_checkpoint(config, 5));
  const auto one = pack(checkpoint, PackType::int8, 1);
  const auto four = pack(checkpoint, PackType::int8, 4);
  ASSERT_TRUE(one && four);
  EXPECT_EQ(one->fingerprint(), four->fingerprint());
}

// Two hosts may have a model in folders of different names, and their groups serve one gateway.
TEST_F(Pack, FingerprintsAreOfTheWeightsNotOfTheName) {
  const auto checkpoint = write(tiny_checkpoint(tiny_config(Architecture::llama), 5));
  const auto here = pack(checkpoint, PackType::int8);
  ASSERT_TRUE(here);
  std::filesystem::rename(checkpoint, folder / "elsewhere");
  std::ofstream(folder / "elsewhere" / "generation_config.json")
      << R"({"temperature": 0.5, "eos_token_id": [257, 256]})";
  const auto there = pack(folder / "elsewhere", PackType::int8);
  ASSERT_TRUE(there);
  EXPECT_NE(here->config().name, there->config().name);
  EXPECT_EQ(here->fingerprint(), there->fingerprint());
  const auto as_float = pack(folder / "elsewhere", PackType::float32);
  ASSERT_TRUE(as_float);
  EXPECT_NE(as_float->fingerprint(), here->fingerprint());
  TinyCheckpoint other = tiny_checkpoint(tiny_config(Architecture::llama), 5);
  other.tensors["model.norm.weight"].values[3] *= 1.5f;
  const auto changed = pack(write(other), PackType::int8);
  ASSERT_TRUE(changed);
  EXPECT_NE(changed->fingerprint(), here->fingerprint());
  other = tiny_checkpoint(tiny_config(Architecture::llama), 5);
  other.config.rope.theta *= 2;  // in the config alone, and in every logit
  const auto turned = pack(write(other), PackType::int8);
  ASSERT_TRUE(turned);
  EXPECT_NE(turned->fingerprint(), here->fingerprint());
}

// Parts whose heights are no multiple of a tile (3 KV heads of 6 would be 18 rows) still pack, in float32.
TEST_F(Pack, OddShapes) {
  ModelConfig config = tiny_config(Architecture::llama);
  config.hidden_size = 42;
  config.q_heads = config.kv_heads = 3;
  config.head_dim = 6;
  config.ffn_size = 27;
  config.vocab_size = 263;
  const auto model = pack(write(tiny_checkpoint(config, 5)), PackType::float32);
  ASSERT_TRUE(model);
  config.head_dim = 32;
  const auto rotated = pack(write(tiny_checkpoint(config, 5)), PackType::int8);
  const auto plain = pack(folder / "tiny", PackType::float32);
  ASSERT_TRUE(rotated && plain);
  EXPECT_LT(distance(fixtures::float_forward(*rotated, kPrompt), fixtures::float_forward(*plain, kPrompt)),
            0.04);
}

// SmolLM2's width: 64 * 9, mixed whole, so that one job turns more rows than a job usually has.
TEST_F(Pack, StreamsMixedOverMoreRowsThanAJobHas) {
  ModelConfig config = tiny_config(Architecture::llama);
  config.hidden_size = 576;
  config.layers = 1;
  const auto checkpoint = write(tiny_checkpoint(config, 5));
  const auto rotated = pack(checkpoint, PackType::int8), plain = pack(checkpoint, PackType::float32);
  ASSERT_TRUE(rotated && plain);
  EXPECT_LT(distance(fixtures::float_forward(*rotated, kPrompt), fixtures::float_forward(*plain, kPrompt)),
            0.04);
}

TEST_F(Pack, HalfPrecisionCheckpoints) {
  const TinyCheckpoint checkpoint = tiny_checkpoint(tiny_config(Architecture::llama), 9);
  const auto exact = pack(write(checkpoint), PackType::float32);
  ASSERT_TRUE(exact);
  const auto expected = fixtures::float_forward(*exact, kPrompt);
  for (const TinyDtype dtype : {TinyDtype::f16, TinyDtype::bf16}) {
    const auto half = pack(write(checkpoint, dtype, 2), PackType::float32);
    ASSERT_TRUE(half);
    const double off = distance(fixtures::float_forward(*half, kPrompt), expected);
    EXPECT_LT(off, dtype == TinyDtype::f16 ? 0.005 : 0.04);
    EXPECT_GT(off, 1e-6);
  }
}

TEST_F(Pack, RefusesBadTensorsByName) {
  const TinyCheckpoint good = tiny_checkpoint(tiny_config(Architecture::llama), 2);
  const std::string o = "model.layers.1.self_attn.o_proj.weight";
  TinyCheckpoint bad = good;
  bad.tensors.erase(o);
  EXPECT_THAT(pack_error(bad), HasSubstr("no tensor \"" + o + "\" (expected shape [96, 128])"));
  bad = good;
  bad.tensors["model.layers.0.mlp.router.weight"] = {{4, 96}, std::vector<float>(384)};
  EXPECT_THAT(pack_error(bad), HasSubstr("model.layers.0.mlp.router.weight"));
  bad = good;
  bad.tensors[o].shape = {128, 96};
  EXPECT_THAT(pack_error(bad), HasSubstr("has shape [128, 96]; the config asks for [96, 128]"));
  for (const float value :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    bad = good;
    bad.tensors[o].values[3 * 128 + 5] = value;
    EXPECT_THAT(pack_error(bad), HasSubstr("at row 3, column 5"));
    EXPECT_THAT(pack_error(bad, PackType::float32), HasSubstr(o));
    bad = good;
    bad.tensors["model.norm.weight"].values[1] = value;
    EXPECT_THAT(pack_error(bad), HasSubstr("model.norm.weight"));
  }
  bad = good;
  bad.config.tied_embeddings = false;
  EXPECT_THAT(pack_error(bad), HasSubstr("lm_head.weight"));
  bad = good;
  bad.config.head_dim = 16;
  EXPECT_THAT(pack_error(bad), HasSubstr("the config asks for [64, 96]"));
}

TEST_F(Pack, IgnoresWhatCarriesNothing) {
  TinyCheckpoint checkpoint = tiny_checkpoint(tiny_config(Architecture::llama), 2);
  checkpoint.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {{16}, std::vector<float>(16, 1.0f)};
  checkpoint.tensors["lm_head.weight"] = {{272, 96}, std::vector<float>(272 * 96, 1.0f)};
  EXPECT_TRUE(pack(write(checkpoint), PackType::int8));
}

TEST_F(Pack, RefusesHeadsTheKernelsCannotDo) {
  ModelConfig config = tiny_config(Architecture::llama);
  for (const int head_dim : {24, 1056}) {
    config.head_dim = head_dim;
    EXPECT_THAT(pack_error(tiny_checkpoint(config, 2)), HasSubstr(fmt::format("head_dim is {}", head_dim)));
  }
}

// The name goes into a JSON directory, which must be UTF-8 to be read again.
TEST_F(Pack, ANameThatIsNoUtf8IsRepaired) {
  TinyCheckpoint checkpoint = tiny_checkpoint(tiny_config(Architecture::llama), 2);
  const auto name_of = [&](const std::filesystem::path& path) {
    const auto packed = pack(path, PackType::int8);
    return packed ? packed->config().name : "";
  };
  const auto gguf = folder / "caf\xe9.gguf", hugging_face = folder / "caf\xe9";
  std::filesystem::rename(write(checkpoint), hugging_face);
  EXPECT_EQ(name_of(hugging_face), "caf\uFFFD");
  for (const std::string name : {"", "n\xff"}) {
    checkpoint.config.name = name;
    ASSERT_TRUE(fixtures::write_gguf(checkpoint, gguf));
    EXPECT_EQ(name_of(gguf), name.empty() ? "caf\uFFFD" : "n\uFFFD");
  }
  checkpoint.config.name = std::string(199, 'n') + "\u00e9";  // cut inside the last character
  ASSERT_TRUE(fixtures::write_gguf(checkpoint, gguf));
  EXPECT_EQ(name_of(gguf), std::string(199, 'n') + "\uFFFD");
}

TEST_F(Pack, NamesFollowTheCheckpoint) {
  const auto checkpoint = write(tiny_checkpoint(tiny_config(Architecture::llama), 2));
  const auto name = packed_file_name(checkpoint, PackType::int8);
  ASSERT_TRUE(name.has_value());
  EXPECT_THAT(*name, testing::MatchesRegex("tiny-[0-9a-f]{16}\\.int8\\.mrpack"));
  EXPECT_EQ(*packed_file_name(checkpoint, PackType::int8), *name);
  EXPECT_NE(*packed_file_name(checkpoint, PackType::float32), *name);
  std::string before = *name;
  for (const char* input :
       {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
        "tiktoken.model", "chat_template.jinja", "model.safetensors", "model.safetensors.index.json"}) {
    std::ofstream(checkpoint / input, std::ios::app) << " ";
    const std::string after = *packed_file_name(checkpoint, PackType::int8);
    EXPECT_NE(after, before) << input << " is an input, so another one makes another packed file";
    before = after;
  }
  std::ofstream(checkpoint / "README.md") << "no input";
  EXPECT_EQ(*packed_file_name(checkpoint, PackType::int8), before);
  EXPECT_FALSE(packed_file_name(folder / "nothing", PackType::int8).has_value());
}

TEST_F(Pack, ReportsProgress) {
  const auto checkpoint = write(tiny_checkpoint(tiny_config(Architecture::llama), 2));
  std::vector<double> fractions;
  PackProgress last;
  const auto packed =
      pack_checkpoint(checkpoint, folder / "out",
                      {.type = PackType::int8, .threads = 2, .progress = [&](const PackProgress& p) {
                         fractions.push_back(p.fraction());
                         last = p;
                       }});
  ASSERT_TRUE(packed.has_value());
  EXPECT_TRUE(std::ranges::is_sorted(fractions));
  EXPECT_DOUBLE_EQ(fractions.back(), 1.0);
  EXPECT_EQ(last.tensors_done, last.tensors_total);
  EXPECT_EQ(last.stage, PackProgress::Stage::packing);
  EXPECT_EQ(last.bytes_found, 0u);
}

TEST_F(Pack, SparesTheCheckpoint) {
  const auto checkpoint = write(tiny_checkpoint(tiny_config(Architecture::llama), 2));
  const auto weights = checkpoint / "model.safetensors";
  const auto size = std::filesystem::file_size(weights);
  const auto packed = pack_checkpoint(checkpoint, weights, {.threads = 1, .progress = {}});
  EXPECT_EQ(std::filesystem::file_size(weights), size);
  ASSERT_FALSE(packed.has_value());
  EXPECT_EQ(packed.error().code, Code::invalid_argument);
  EXPECT_THAT(packed.error().message, HasSubstr("is part of the checkpoint"));
}

TEST_F(Pack, TwoAtOnceBothSucceed) {
  const auto checkpoint = write(tiny_checkpoint(tiny_config(Architecture::llama), 2));
  const auto run = [&] {
    for (int i = 0; i < 10; ++i) {
      EXPECT_TRUE(
          pack_checkpoint(checkpoint, folder / "out", {.type = PackType::int8, .threads = 1, .progress = {}})
              .has_value());
      EXPECT_TRUE(PackedModel::open(folder / "out", {.verify_checksums = true}).has_value());
    }
  };
  std::jthread other(run);
  run();
  other.join();
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}),
            2);  // the checkpoint and one packed file
}

TEST_F(Pack, AKilledPackLeavesNoFileUnderTheName) {
  const auto checkpoint = write(tiny_checkpoint(tiny_config(Architecture::llama), 2));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    (void)pack_checkpoint(checkpoint, folder / "out",
                          {.type = PackType::int8, .threads = 1, .progress = [](const PackProgress& p) {
                             if (p.fraction() > 0.5) ::raise(SIGKILL);
                           }});
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  EXPECT_TRUE(pack(checkpoint, PackType::int8));
}

}  // namespace
}  // namespace millrace::model
