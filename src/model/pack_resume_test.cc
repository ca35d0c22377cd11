// Packing that is killed, runs out of disk, or finds its source changed: the next one continues where that is
// right, and the bytes are those of an undisturbed run.
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <functional>
#include <thread>

#include "base/file.h"
#include "base/units.h"
#include "model/fixtures/correlated_inputs.h"
#include "model/fixtures/own_folder.h"
#include "model/fixtures/tiny_checkpoint.h"
#include "model/internal/output_file.h"
#include "model/internal/pack_run.h"
#include "model/internal/packed_layout.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

namespace fs = std::filesystem;
using fixtures::TinyCheckpoint;
using testing::HasSubstr;
using Stage = PackProgress::Stage;

TinyCheckpoint checkpoint_of(uint64_t seed) {
  ModelConfig config = fixtures::tiny_config(Architecture::llama);
  config.vocab_size = 1500;  // several jobs of one section, the last one ragged
  config.tied_embeddings = false;
  return fixtures::tiny_checkpoint(config, seed);
}

struct Outcome {
  Expected<void> result;
  uint64_t bytes_found = 0;
  int jobs_done = 0, calls = 0;
  bool waited = false;
};

class PackResume : public fixtures::OwnFolderTest {
 protected:
  void SetUp() override {
    OwnFolderTest::SetUp();
    write(1);
    expected = packed_anew();
    out = folder / "out";
  }

  void write(uint64_t seed) {
    fs::remove_all(folder / "tiny");
    ASSERT_TRUE(fixtures::write_hugging_face(checkpoint_of(seed), folder / "tiny", {}, 3).has_value());
  }
  std::string bytes_of(const fs::path& path) const { return read_file(path, size_t{1} << 28).value_or(""); }
  std::string packed_anew(PackType type = PackType::int8) const {
    const auto path = folder / "undisturbed";
    const auto packed =
        pack_checkpoint(folder / "tiny", path,
                        {.type = type, .threads = 2, .progress = {}, .calibration = calibration.get()});
    EXPECT_TRUE(packed.has_value()) << (packed ? "" : packed.error().message);
    std::string bytes = bytes_of(path);
    fs::remove(path);
    return bytes;
  }
  Outcome pack(const std::function<void(const PackProgress&)>& also = {}, int threads = 1) const {
    Outcome outcome;
    outcome.result = pack_checkpoint(folder / "tiny", out,
                                     {.type = PackType::int8,
                                      .threads = threads,
                                      .progress =
                                          [&](const PackProgress& p) {
                                            ++outcome.calls;
                                            outcome.waited |= p.stage == Stage::waiting;
                                            outcome.jobs_done += p.stage == Stage::packing ? 1 : 0;
                                            outcome.bytes_found = p.bytes_found;
                                            if (also) also(p);
                                          },
                                      .calibration = calibration.get()});
    return outcome;
  }
  // A process of its own that is killed at its nth report, or (0) after some time. True: it was.
  bool pack_and_die(int calls, int threads = 1, useconds_t after_us = 0) const {
    const pid_t child = ::fork();
    if (child == 0) {
      std::atomic<int> left{calls};
      (void)pack(
          [&](const PackProgress&) {
            if (--left == 0) ::raise(SIGKILL);
          },
          threads);
      ::_exit(0);
    }
    if (after_us > 0) {
      ::usleep(after_us);
      ::kill(child, SIGKILL);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFSIGNALED(status);
  }
  void expect_whole(const std::string& bytes) const {
    EXPECT_TRUE(bytes_of(out) == bytes) << "not the bytes of an undisturbed run";
    EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 2) << "the checkpoint and one packed file";
    EXPECT_TRUE(PackedModel::open(out, {.verify_checksums = true}).has_value());
  }

  // Inputs of every linear of the checkpoint, as a text of `seed` would bring them.
  void calibrate(uint64_t seed) {
    calibration = CalibrationInputs::create(folder, seed).value();
    const ModelConfig config = checkpoint_of(1).config;
    const auto add = [&](const std::string& section, int width) {
      ASSERT_TRUE(fixtures::add_rows(*calibration, section, 0,
                                     fixtures::correlated_rows(60, width, 7, 1, seed), width)
                      .has_value());
    };
    for (int layer = 0; layer < config.layers; ++layer) {
      add(fmt::format("layers.{}.attention.qkv", layer), config.hidden_size);
      add(fmt::format("layers.{}.attention.o", layer), config.q_heads * config.head_dim);
      add(fmt::format("layers.{}.ffn.gate_up", layer), config.hidden_size);
      add(fmt::format("layers.{}.ffn.down", layer), config.ffn_size);
    }
    add("head", config.hidden_size);
  }

  fs::path out;
  std::string expected;
  std::unique_ptr<CalibrationInputs> calibration;
};

TEST_F(PackResume, KilledAtAnyReportContinuesToTheSameBytes) {
  const Outcome undisturbed = pack();
  ASSERT_TRUE(undisturbed.result.has_value());
  expect_whole(expected);
  uint64_t found_before = 0;
  for (int n = 1; n <= undisturbed.calls; ++n) {
    fs::remove(out);
    ASSERT_TRUE(pack_and_die(n));
    ASSERT_FALSE(fs::exists(out));
    const Outcome rest = pack();
    ASSERT_TRUE(rest.result.has_value()) << rest.result.error().message;
    expect_whole(expected);
    EXPECT_TRUE(rest.bytes_found > 0 || n == 1) << "killed at report " << n;
    EXPECT_GE(rest.bytes_found + 300'000, found_before);  // but for a section's last job, done again
    // What is done again: jobs whose section had not got its checksum yet, one a section at most.
    EXPECT_LE(rest.jobs_done, undisturbed.calls - n + 1);
    found_before = rest.bytes_found;
  }
}

TEST_F(PackResume, KilledAgainAndAgainAtAnyTime) {
  int killed = 0;
  useconds_t life_us = 1000;
  unsigned seed = 7;
  while (pack_and_die(0, 2, life_us) && !fs::exists(out)) {
    ASSERT_LT(++killed, 500) << "no progress from one run to the next";
    seed = seed * 1103515245 + 12345;
    life_us = 1000 + seed % 16384 + static_cast<useconds_t>(killed) * 200;
  }
  EXPECT_GT(killed, 0);
  fs::path journal = out;
  journal += ".journal";
  if (fs::exists(journal)) {  // killed behind the last line but one
    EXPECT_EQ(pack().jobs_done, 0);
  }
  expect_whole(expected);
}

TEST_F(PackResume, CalibratedPackingContinuesToTheSameBytes) {
  calibrate(3);
  const std::string calibrated = packed_anew();
  ASSERT_EQ(calibrated.size(), expected.size());
  ASSERT_NE(calibrated, expected);
  for (const int threads : {1, 3}) {
    fs::remove(out);
    ASSERT_TRUE(pack_and_die(20, threads));
    const Outcome rest = pack({}, threads);
    ASSERT_TRUE(rest.result.has_value());
    EXPECT_GT(rest.bytes_found, 0u);
    expect_whole(calibrated);
  }
}

TEST_F(PackResume, AnotherCalibrationStartsAnew) {
  ASSERT_TRUE(pack_and_die(20));
  for (const uint64_t seed : {3, 4}) {
    calibrate(seed);
    const Outcome rest = pack();
    ASSERT_TRUE(rest.result.has_value());
    EXPECT_EQ(rest.bytes_found, 0u) << "seed " << seed;
    expect_whole(packed_anew());
    fs::remove(out);
    ASSERT_TRUE(pack_and_die(20));
  }
}

TEST_F(PackResume, ACalibrationThatKnowsNothingChangesNothing) {
  calibration = CalibrationInputs::create(folder, 1).value();
  ASSERT_TRUE(pack().result.has_value());
  expect_whole(expected);
}

TEST_F(PackResume, DamagedBytesAreDoneAgain) {
  ASSERT_TRUE(pack_and_die(12));
  fs::path partial = out, journal = out;
  partial += ".partial";
  journal += ".journal";
  const std::string good = bytes_of(partial), good_journal = bytes_of(journal);
  ASSERT_EQ(good.size(), expected.size());
  const auto put = [](const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
  };
  const Outcome all = pack();
  ASSERT_GT(all.bytes_found, 0u);
  // The first sections are the tokenizer, at 4096, and after it the embedding.
  for (const size_t at : {size_t{4096 + 100}, good.size() / 4}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    put(partial, bad);
    put(journal, good_journal);
    fs::remove(out);
    const Outcome rest = pack();
    ASSERT_TRUE(rest.result.has_value());
    expect_whole(expected);
    EXPECT_EQ(rest.jobs_done > all.jobs_done, good[at] == expected[at]) << at;
  }
  for (size_t size = 0; size <= good_journal.size(); size += 5) {  // torn anywhere
    put(partial, good);
    put(journal, good_journal.substr(0, size) + (size % 2 == 0 ? "" : "garbage behind it that is no entry"));
    fs::remove(out);
    ASSERT_TRUE(pack().result.has_value()) << size;
    expect_whole(expected);
  }
  put(journal, good_journal);  // the file itself is missing, or cut
  EXPECT_EQ(pack().bytes_found, 0u);
  expect_whole(expected);
  put(journal, good_journal);
  put(partial, good.substr(0, good.size() - 1));
  EXPECT_EQ(pack().bytes_found, 0u);
  expect_whole(expected);
}

TEST_F(PackResume, AChangedSourceStartsAnew) {
  ASSERT_TRUE(pack_and_die(20));
  write(2);
  const std::string other = packed_anew();
  ASSERT_NE(other, expected);
  const Outcome rest = pack();
  ASSERT_TRUE(rest.result.has_value());
  EXPECT_EQ(rest.bytes_found, 0u);
  expect_whole(other);
}

// Same size, same time of modification, and far behind the bytes that are hashed: the time of change gives it
// away.
TEST_F(PackResume, ASourceThatLooksTheSameStartsAnew) {
  ASSERT_TRUE(pack_and_die(20));
  fs::path shard;
  for (const auto& entry : fs::directory_iterator(folder / "tiny"))
    if (entry.path().extension() == ".safetensors" &&
        (shard.empty() || entry.file_size() > fs::file_size(shard)))
      shard = entry.path();
  ASSERT_GT(fs::file_size(shard), 80'000u);
  const auto modified = fs::last_write_time(shard);
  std::fstream(shard, std::ios::in | std::ios::out | std::ios::binary).seekp(-1, std::ios::end).put(0);
  fs::last_write_time(shard, modified);
  const Outcome rest = pack();
  ASSERT_TRUE(rest.result.has_value());
  EXPECT_EQ(rest.bytes_found, 0u);
  expect_whole(packed_anew());
}

TEST_F(PackResume, AnotherTypeStartsAnew) {
  const std::string floats = packed_anew(PackType::float32);
  ASSERT_TRUE(pack_and_die(20));
  ASSERT_TRUE(pack_checkpoint(folder / "tiny", out, {.type = PackType::float32, .threads = 1, .progress = {}})
                  .has_value());
  expect_whole(floats);
}

TEST_F(PackResume, ASourceThatChangesMeanwhileIsRefused) {
  for (const bool shorter : {true, false}) {
    write(1);
    int calls = 0;
    const Outcome outcome = pack([&](const PackProgress&) {
      if (++calls != 4) return;
      for (const auto& entry : fs::directory_iterator(folder / "tiny"))
        if (entry.path().extension() == ".safetensors") {
          if (shorter) fs::resize_file(entry.path(), 100);
          if (!shorter) fs::last_write_time(entry.path(), fs::file_time_type::clock::now());
        }
    });
    ASSERT_FALSE(outcome.result.has_value());
    EXPECT_EQ(outcome.result.error().code, Code::failed_precondition);
    EXPECT_THAT(outcome.result.error().message, HasSubstr("changed while it was being packed"));
    EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1) << "only the checkpoint";
  }
}

TEST_F(PackResume, ABadTensorLeavesNothingBehind) {
  TinyCheckpoint bad = checkpoint_of(1);
  bad.tensors["model.norm.weight"].values[1] = std::numeric_limits<float>::infinity();
  fs::remove_all(folder / "tiny");
  ASSERT_TRUE(fixtures::write_hugging_face(bad, folder / "tiny").has_value());
  const Outcome outcome = pack();
  ASSERT_FALSE(outcome.result.has_value());
  EXPECT_THAT(outcome.result.error().message, HasSubstr("model.norm.weight"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
}

TEST_F(PackResume, TheSecondWaitsAndHasNothingToDo) {
  std::atomic<bool> started{false}, other_waits{false};
  Outcome first, second;
  std::jthread other([&] {
    while (!started) std::this_thread::yield();
    second = pack([&](const PackProgress& p) { other_waits = other_waits || p.stage == Stage::waiting; });
  });
  first = pack([&](const PackProgress&) {
    started = true;
    while (!other_waits) std::this_thread::yield();
  });
  other.join();
  ASSERT_TRUE(first.result.has_value() && second.result.has_value());
  EXPECT_TRUE(second.waited);
  EXPECT_EQ(second.jobs_done, 0);
  expect_whole(expected);
}

TEST_F(PackResume, UnfinishedPacksCanBeRemoved) {
  ASSERT_TRUE(pack_and_die(5));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 3);
  remove_unfinished_pack(out);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
  int calls = 0;  // not somebody's at work
  const Outcome outcome = pack([&](const PackProgress&) {
    if (++calls == 3) remove_unfinished_pack(out);
  });
  ASSERT_TRUE(outcome.result.has_value());
  expect_whole(expected);
}

// Runs `body` in a process with a file system of `bytes` of its own at folder/small; its exit status. -1:
// this system lets nobody mount.
int on_small_disk(const fs::path& small, uint64_t bytes, const std::function<int()>& body) {
  fs::create_directories(small);
  const pid_t child = ::fork();
  if (child == 0) {
    const bool alone =
        ::geteuid() == 0 ? ::unshare(CLONE_NEWNS) == 0 : ::unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0;
    if (!alone || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", small.c_str(), "tmpfs", 0, fmt::format("size={}", bytes).c_str()) != 0)
      ::_exit(77);
    ::_exit(body());
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  return WEXITSTATUS(status) == 77 ? -1 : WEXITSTATUS(status);
}

TEST_F(PackResume, AFullDiskIsAnErrorBeforeTheWork) {
  const fs::path small = folder / "small";
  const int status = on_small_disk(small, 256 * kKiB, [&]() -> int {
    int calls = 0;
    const auto packed = pack_checkpoint(
        folder / "tiny", small / "out",
        {.type = PackType::int8, .threads = 1, .progress = [&](const PackProgress&) { ++calls; }});
    if (packed || packed.error().code != Code::resource_exhausted) return 1;
    const std::string& message = packed.error().message;
    if (message.find(fmt::format("reserve {} bytes", expected.size())) == std::string::npos) return 2;
    if (message.find("bytes are free") == std::string::npos) return 3;
    if (message.find("what is written stays") != std::string::npos) return 6;  // nothing is
    if (calls != 0) return 4;
    return fs::is_empty(small) ? 0 : 5;
  });
  if (status < 0) GTEST_SKIP() << "may not mount a small file system here";
  EXPECT_EQ(status, 0);
}

// Where a file system cannot reserve: writing finds out, what was written stays, and with room it continues.
TEST_F(PackResume, ADiskThatFillsUpLeavesWhatWasWritten) {
  const fs::path small = folder / "small", path = small / "file", ballast = small / "ballast";
  const OutputFile::Options options{
      .size = 64 * kKiB, .identity = 5, .max_entries = 16, .reserve = false, .on_wait = {}};
  const std::vector<std::byte> piece(4096, std::byte{42});
  const auto fill = [&](OutputFile& file, uint32_t first) -> Expected<void> {
    for (uint32_t i = first; i < 16; ++i) {
      MR_TRY(file.write_at(i * piece.size(), piece));
      MR_TRY(file.record({1, i, i}));
    }
    return {};
  };
  const int status = on_small_disk(small, 64 * kKiB, [&]() -> int {
    std::ofstream(ballast) << std::string(24 * kKiB, 'x');
    {
      auto file = OutputFile::open(path, options);
      if (!file) return 1;
      const auto filled = fill(*file, 0);
      if (filled || filled.error().code != Code::resource_exhausted) return 2;
      if (filled.error().message.find("it continues") == std::string::npos) return 3;
    }
    fs::resize_file(ballast, 0);
    auto file = OutputFile::open(path, options);
    if (!file || file->found().empty() || file->found().size() > 9) return 4;
    for (uint32_t i = 0; i < file->found().size(); ++i)
      if (file->found()[i].index != i || file->found()[i].checksum != i) return 5;
    (void)fill(*file, static_cast<uint32_t>(file->found().size()));
    return 0;
  });
  if (status < 0) GTEST_SKIP() << "may not mount a small file system here";
  EXPECT_EQ(status, 0);
}

TEST_F(PackResume, AFileThatOnlyLacksItsNameGetsIt) {
  const OutputFile::Options options{.size = 8, .identity = 9, .max_entries = 4, .on_wait = {}};
  const std::string bytes = "12345678";
  {
    auto file = OutputFile::open(out, options);
    ASSERT_TRUE(file.has_value());
    ASSERT_TRUE(file->write_at(0, std::as_bytes(std::span(bytes))).has_value());
    // commit() is killed between its last entry and the new name.
    ASSERT_TRUE(file->record({.kind = OutputFile::kCommitted}).has_value());
  }
  {
    const auto file = OutputFile::open(out, options);
    ASSERT_TRUE(file.has_value());
    EXPECT_TRUE(file->finished());
  }
  EXPECT_EQ(bytes_of(out), bytes);
  const auto file = OutputFile::open(out, options);  // asked again, it is written again
  ASSERT_TRUE(file.has_value());
  EXPECT_FALSE(file->finished());
}

// The system may refuse threads (a container's pids.max): the one that is here does the work.
TEST_F(PackResume, OneThreadIsEnough) {
  fs::permissions(folder, fs::perms::all);
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit one{.rlim_cur = 1, .rlim_max = 1};
    // The limit does not bind root.
    if (::setrlimit(RLIMIT_NPROC, &one) != 0 || (::geteuid() == 0 && ::setuid(65534) != 0)) ::_exit(77);
    try {
      ::_exit(pack({}, 4).result.has_value() ? 0 : 1);
    } catch (const std::exception&) {
      ::_exit(2);
    }
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "cannot limit the number of threads here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
  expect_whole(expected);
}

TEST_F(PackResume, ThreadsFitTheBudget) {
  std::vector<PackJob> jobs(3);
  jobs[1].scratch_bytes = 40;
  EXPECT_EQ(threads_within(100, 64, jobs), 2);
  EXPECT_EQ(threads_within(100, 1, jobs), 1);
  EXPECT_EQ(threads_within(10, 64, jobs), 1);
  EXPECT_EQ(threads_within(1'000'000, 64, jobs), 64);
}

}  // namespace
}  // namespace millrace::model
