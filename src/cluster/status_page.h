// One page of shared memory per group, written by the group and read by its supervisor: enough to tell a
// group that works from one that is wedged, without asking it (a wedged process does not answer). Also
// carries the restart count down and the reason of a permanent failure up.
//
// Writers: the supervisor sets `restarts` and clears the rest before each start; the group writes everything
// else. All fields are atomic and independent: a reader sees each at some recent moment, which suffices for
// thresholds of seconds.
#pragma once
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace millrace::cluster {

class StatusPage {
 public:
  struct Fields {
    std::atomic<uint64_t> magic;
    std::atomic<uint64_t> restarts;  // starts of this group before the present one
    std::atomic<uint32_t> ready;     // 1: serving sessions
    std::atomic<uint64_t> steps;     // engine steps finished
    std::atomic<uint64_t> pending;   // requests accepted and not finished
    std::atomic<int64_t> beat_ns;    // monotonic_ns() of the group's housekeeping thread
    char message[1024];              // why the process exits with kExitConfiguration; NUL-terminated
  };
  static_assert(std::atomic<uint64_t>::is_always_lock_free, "shared between processes");

  static Expected<std::shared_ptr<StatusPage>> create(
      const std::filesystem::path& path);  // the supervisor's side
  static Expected<std::shared_ptr<StatusPage>> open(const std::filesystem::path& path);  // the group's side
  ~StatusPage();
  StatusPage(const StatusPage&) = delete;
  StatusPage& operator=(const StatusPage&) = delete;

  Fields& fields() { return *fields_; }
  void clear_for_start(uint64_t restarts);
  void set_message(std::string_view message);  // cut at the page's size
  std::string message() const;

 private:
  explicit StatusPage(Fields* fields) : fields_(fields) {}
  Fields* const fields_;
};

// The child's exit status that means "starting me again will not help": a bad model, a bad option.
inline constexpr int kExitConfiguration = 2;

}  // namespace millrace::cluster
