#include "model/calibration.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "base/file.h"
#include "base/hash.h"

namespace millrace::model {
namespace {

std::unexpected<Status> io_error(std::string_view what) {
  const int number = errno;
  return fail(code_of_errno(number), fmt::format("calibration: {}: {}", what, std::strerror(number)));
}

// Before each row's values in the file.
struct RowHeader {
  uint64_t hash = 0;
  float scale = 0;
};
constexpr size_t kHeaderBytes = 12;

class Inputs final : public CalibrationInputs {
 public:
  Inputs(int file, uint64_t digest, std::string folder)
      : file_(file), digest_(digest), folder_(std::move(folder)) {}
  ~Inputs() override { ::close(file_); }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;
  uint64_t digest() const override { return digest_; }

  Expected<void> add(std::string_view section, int first_channel, int width, const int8_t* values,
                     int64_t stride, const float* scale, int rows) override {
    const size_t row_bytes = row_bytes_of(width);
    std::vector<char> bytes;
    bytes.reserve(static_cast<size_t>(rows) * row_bytes);
    int kept = 0;
    for (int row = 0; row < rows; ++row) {
      // One such row would make sums of squares, and with them every weight of the matrix, say nothing.
      if (!std::isfinite(scale[row])) continue;
      ++kept;
      bytes.resize(bytes.size() + row_bytes);
      char* to = bytes.data() + bytes.size() - row_bytes;
      const auto own = std::span(values + row * stride, static_cast<size_t>(width));
      const uint64_t hash = hash64(std::as_bytes(own), std::bit_cast<uint32_t>(scale[row]));
      std::memcpy(to, &hash, sizeof hash);
      std::memcpy(to + sizeof hash, &scale[row], sizeof(float));
      std::memcpy(to + kHeaderBytes, own.data(), own.size());
    }
    if (kept == 0) return status_of_now();
    const std::lock_guard lock(mutex_);
    MR_TRY(status_);
    Slot& slot = slots_[{std::string(section), first_channel}];
    MR_CHECK(slot.width == 0 || slot.width == width, "the rows of one matrix have one width");
    slot.width = width;
    slot.rows += kept;
    if (!slot.pieces.empty() &&
        slot.pieces.back().offset + static_cast<uint64_t>(slot.pieces.back().rows) * row_bytes == end_) {
      slot.pieces.back().rows += kept;
    } else {
      slot.pieces.push_back({end_, kept});
    }
    status_ = write_at_end(bytes);
    return status_;
  }

  Expected<void> status() const override { return status_; }

  uint64_t memory_bytes() const override {
    uint64_t bytes = 0;
    for (const auto& [key, slot] : slots_)
      bytes += sizeof(slot) + 128 + key.first.size() + slot.pieces.capacity() * sizeof(Piece);
    return bytes;
  }

  int64_t rows(std::string_view section, int first_channel) const override {
    const auto slot = slots_.find({std::string(section), first_channel});
    return slot == slots_.end() ? 0 : slot->second.rows;
  }

  Expected<CalibrationRows> find(std::string_view section, int first_channel) const override {
    MR_TRY(status_);
    CalibrationRows out;
    const auto found = slots_.find({std::string(section), first_channel});
    if (found == slots_.end()) return out;
    const Slot& slot = found->second;
    out.width = slot.width;
    std::vector<std::pair<RowHeader, uint64_t>> order;
    order.reserve(static_cast<size_t>(slot.rows));
    for (const Piece& piece : slot.pieces) {
      for (int row = 0; row < piece.rows; ++row) {
        const uint64_t place = piece.offset + static_cast<uint64_t>(row) * row_bytes_of(slot.width);
        char bytes[kHeaderBytes];
        MR_TRY(read_at(place, bytes, sizeof bytes));
        RowHeader header;
        std::memcpy(&header.hash, bytes, sizeof header.hash);
        std::memcpy(&header.scale, bytes + sizeof header.hash, sizeof header.scale);
        order.emplace_back(header, place);
      }
    }
    // Rows of one hash are the same row: their places do not matter.
    out.place.reserve(order.size());
    out.scale.reserve(order.size());
    std::ranges::sort(order, {}, [](const auto& row) { return row.first.hash; });
    for (const auto& [header, place] : order) {
      out.place.push_back(place);
      out.scale.push_back(header.scale);
    }
    return out;
  }

  Expected<void> read(const CalibrationRows& rows, int64_t first, int count, int begin, int columns,
                      float* out) const override {
    MR_CHECK(first >= 0 && count >= 0 && first + count <= rows.count() && begin >= 0 &&
                 begin + columns <= rows.width,
             "calibration rows out of range");
    std::vector<int8_t> values(static_cast<size_t>(columns));
    for (int i = 0; i < count; ++i) {
      const auto row = static_cast<size_t>(first + i);
      MR_TRY(read_at(rows.place[row] + kHeaderBytes + static_cast<uint64_t>(begin),
                     reinterpret_cast<char*>(values.data()), values.size()));
      for (int j = 0; j < columns; ++j)
        out[int64_t{j} * count + i] = rows.scale[row] * static_cast<float>(values[static_cast<size_t>(j)]);
    }
    return {};
  }

 private:
  struct Piece {  // what one add() wrote
    uint64_t offset = 0;
    int rows = 0;
  };
  struct Slot {
    int width = 0;
    int64_t rows = 0;
    std::vector<Piece> pieces;
  };

  Expected<void> status_of_now() {
    const std::lock_guard lock(mutex_);
    return status_;
  }
  static size_t row_bytes_of(int width) { return kHeaderBytes + static_cast<size_t>(width); }

  Expected<void> write_at_end(std::span<const char> bytes) {
    if (!write_all(file_, end_, std::as_bytes(bytes)))
      return io_error(
          fmt::format("cannot keep the inputs of the model in {} ({} bytes so far; packing elsewhere with "
                      "-o puts them there)",
                      folder_, end_));
    end_ += bytes.size();
    return {};
  }

  Expected<void> read_at(uint64_t offset, char* to, size_t size) const {
    const int64_t got = read_all(file_, offset, std::as_writable_bytes(std::span(to, size)));
    if (std::cmp_equal(got, size)) return {};
    if (got >= 0) errno = EIO;  // a row that was added must be there
    return io_error("cannot read the inputs of the model again");
  }

  const int file_;
  const uint64_t digest_;
  const std::string folder_;
  std::mutex mutex_;  // guards what follows, while rows are added
  Expected<void> status_;
  uint64_t end_ = 0;
  std::map<std::pair<std::string, int>, Slot> slots_;
};

}  // namespace

Expected<std::unique_ptr<CalibrationInputs>> CalibrationInputs::create(const std::filesystem::path& folder,
                                                                       uint64_t digest) {
  int file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) {  // not every file system has files without names
    std::string name = (folder / ".calibration-XXXXXX").string();
    file = ::mkostemp(name.data(), O_CLOEXEC);
    if (file < 0) return io_error(fmt::format("cannot make a file in {}", folder.string()));
    ::unlink(name.c_str());
  }
  return std::make_unique<Inputs>(file, digest, folder.string());
}

}  // namespace millrace::model
