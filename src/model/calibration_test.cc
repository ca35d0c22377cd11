// What calibration keeps: rows by matrix, in an order of their own, and the first failure for good.
#include "model/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <thread>
#include <vector>

#include "base/random.h"
#include "model/fixtures/own_folder.h"

namespace millrace::model {
namespace {

namespace fs = std::filesystem;

class Calibration : public fixtures::OwnFolderTest {
 protected:
  std::unique_ptr<CalibrationInputs> create() const { return CalibrationInputs::create(folder, 7).value(); }
};

struct Rows {
  Rows(int count, int width, uint64_t seed) : width_(width) {
    for (int i = 0; i < count * width; ++i)
      values.push_back(
          static_cast<int8_t>(std::lround(uniform_at(seed, static_cast<uint64_t>(i), 0) * 254 - 127)));
    for (int i = 0; i < count; ++i)
      scale.push_back(static_cast<float>(uniform_at(seed, static_cast<uint64_t>(i), 1)) + 0.1f);
  }
  const int8_t* row(int i) const { return values.data() + i * width_; }
  int width_;
  std::vector<int8_t> values;
  std::vector<float> scale;
};

// All columns of all rows, row after row, as find() orders them.
std::vector<float> all_of(const CalibrationInputs& inputs, std::string_view section, int first_channel = 0) {
  const CalibrationRows rows = inputs.find(section, first_channel).value();
  const auto count = static_cast<int>(rows.count());
  std::vector<float> columns(static_cast<size_t>(rows.width * count)), out;
  EXPECT_TRUE(inputs.read(rows, 0, count, 0, rows.width, columns.data()).has_value());
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < rows.width; ++j) out.push_back(columns[static_cast<size_t>(j * count + i)]);
  return out;
}

TEST_F(Calibration, TheOrderOfRowsIsTheirOwn) {
  const Rows rows(40, 96, 1);
  const auto one = create(), other = create();
  ASSERT_TRUE(one->add("a", 0, 96, rows.row(0), 96, rows.scale.data(), 40).has_value());
  for (int i = 39; i >= 0; --i)
    ASSERT_TRUE(other->add("a", 0, 96, rows.row(i), 96, &rows.scale[static_cast<size_t>(i)], 1).has_value());
  EXPECT_EQ(one->rows("a", 0), 40);
  EXPECT_EQ(all_of(*one, "a"), all_of(*other, "a"));
  // Nothing is lost or changed: the same multiset of first values.
  std::vector<float> kept, given;
  const auto all = all_of(*one, "a");
  for (size_t i = 0; i < 40; ++i) {
    kept.push_back(all[i * 96]);
    given.push_back(rows.scale[i] * static_cast<float>(rows.values[i * 96]));
  }
  EXPECT_THAT(kept, testing::UnorderedElementsAreArray(given));
  EXPECT_NE(kept, given) << "as they came: the order says nothing of hashes";
}

// An infinite scale would make every sum of squares infinite, and with it every weight of the matrix.
TEST_F(Calibration, RowsThatAreNoNumbersAreDropped) {
  const Rows rows(6, 16, 3);
  const auto inputs = create(), good = create();
  auto scale = rows.scale;
  scale[0] = INFINITY;
  scale[4] = NAN;
  ASSERT_TRUE(inputs->add("a", 0, 16, rows.row(0), 16, scale.data(), 6).has_value());
  for (const int row : {1, 2, 3, 5})
    ASSERT_TRUE(
        good->add("a", 0, 16, rows.row(row), 16, &rows.scale[static_cast<size_t>(row)], 1).has_value());
  EXPECT_EQ(inputs->rows("a", 0), 4);
  EXPECT_EQ(all_of(*inputs, "a"), all_of(*good, "a"));
  scale.assign(6, INFINITY);
  ASSERT_TRUE(inputs->add("b", 0, 16, rows.row(0), 16, scale.data(), 6).has_value());
  EXPECT_EQ(inputs->rows("b", 0), 0);
  EXPECT_EQ(inputs->find("b", 0).value().width, 0);
}

TEST_F(Calibration, AddedByManyThreads) {
  const Rows rows(64, 32, 2);
  const auto one = create(), other = create();
  ASSERT_TRUE(one->add("a", 0, 32, rows.row(0), 32, rows.scale.data(), 64).has_value());
  {
    std::vector<std::jthread> team;
    for (int t = 0; t < 4; ++t)
      team.emplace_back([&, t] {
        for (int i = t; i < 64; i += 4)
          (void)other->add("a", 0, 32, rows.row(i), 32, &rows.scale[static_cast<size_t>(i)], 1);
      });
  }
  EXPECT_EQ(all_of(*one, "a"), all_of(*other, "a"));
}

TEST_F(Calibration, MatricesAndHeadsAreApart) {
  const Rows narrow(3, 16, 3), wide(5, 48, 4);
  const auto inputs = create();
  ASSERT_TRUE(inputs->add("k_up", 0, 16, narrow.row(0), 16, narrow.scale.data(), 1).has_value());
  ASSERT_TRUE(inputs->add("k_up", 64, 16, narrow.row(1), 16, narrow.scale.data(), 2).has_value());
  ASSERT_TRUE(inputs->add("o", 0, 48, wide.row(0), 48, wide.scale.data(), 5).has_value());
  EXPECT_EQ(inputs->rows("k_up", 0), 1);
  EXPECT_EQ(inputs->rows("k_up", 64), 2);
  EXPECT_EQ(inputs->rows("o", 0), 5);
  EXPECT_EQ(inputs->rows("o", 64), 0);
  EXPECT_EQ(inputs->find("nothing", 0).value().count(), 0);
  // Some columns of some rows.
  const CalibrationRows rows = inputs->find("o", 0).value();
  const auto all = all_of(*inputs, "o");
  std::vector<float> some(2 * 3);
  ASSERT_TRUE(inputs->read(rows, 1, 2, 45, 3, some.data()).has_value());
  EXPECT_EQ(some[0], all[1 * 48 + 45]);
  EXPECT_EQ(some[1], all[2 * 48 + 45]);
  EXPECT_EQ(some[5], all[2 * 48 + 47]);
}

TEST_F(Calibration, LeavesNoFileBehind) {
  const auto inputs = create();
  EXPECT_TRUE(fs::is_empty(folder));
  const auto nowhere = CalibrationInputs::create(folder / "missing", 1);
  ASSERT_FALSE(nowhere.has_value());
  EXPECT_THAT(nowhere.error().message, testing::HasSubstr((folder / "missing").string()));
}

// Who may not write there need not try again later. In a process of its own: root may write anywhere.
TEST_F(Calibration, AFolderThatMayNotBeWrittenToIsToldAsSuch) {
  fs::permissions(folder, fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read |
                              fs::perms::others_exec);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(77);
    const auto inputs = CalibrationInputs::create(folder, 7);
    ::_exit(inputs.has_value() ? 1 : inputs.error().code == Code::permission_denied ? 0 : 2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  fs::permissions(folder, fs::perms::owner_all);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "cannot become a user without rights here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(Calibration, AFullDiskIsToldAndStaysTold) {
  const Rows rows(64, 96, 5);
  const auto inputs = create();
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto first = inputs->add("a", 0, 96, rows.row(0), 96, rows.scale.data(), 64);
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, handler);
  ASSERT_FALSE(first.has_value());
  EXPECT_EQ(first.error().code, Code::resource_exhausted);
  EXPECT_THAT(first.error().message, testing::HasSubstr("cannot keep"));
  EXPECT_FALSE(inputs->add("b", 0, 96, rows.row(0), 96, rows.scale.data(), 1).has_value());
  EXPECT_FALSE(inputs->status().has_value());
  EXPECT_FALSE(inputs->find("a", 0).has_value());
}

}  // namespace
}  // namespace millrace::model
