// Monotonic and wall time as plain numbers with the unit in the name.
#pragma once
#include <chrono>
#include <cstdint>

namespace millrace {

inline int64_t monotonic_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
inline double monotonic_s() { return static_cast<double>(monotonic_ns()) * 1e-9; }
inline int64_t unix_time_s() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace millrace
