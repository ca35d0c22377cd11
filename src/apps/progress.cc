#include "apps/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/clock.h"

namespace millrace::apps {

ProgressBar::ProgressBar(std::string title) : title_(std::move(title)), terminal_(::isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() {
  if (drawn_ && terminal_) std::fputc('\n', stderr);
}

void ProgressBar::update(double fraction, std::string_view detail) {
  fraction = std::clamp(fraction, 0.0, 1.0);
  if (complete_) return;
  complete_ = fraction >= 1.0;
  if (terminal_) {
    const int64_t now = monotonic_ns();
    if (!complete_ && now - last_draw_ns_ < 100'000'000) return;
    last_draw_ns_ = now;
    draw(fraction, detail);
  } else if (const int tenth = static_cast<int>(fraction * 10); tenth != last_tenth_) {
    last_tenth_ = tenth;
    fmt::print(stderr, "{}: {:3.0f} % {}\n", title_, fraction * 100, detail);
  }
}

void ProgressBar::draw(double fraction, std::string_view detail) {
  constexpr int kWidth = 30;
  const int full = static_cast<int>(fraction * kWidth);
  std::string bar;
  for (int i = 0; i < kWidth; ++i) bar += i < full ? "█" : "░";
  fmt::print(stderr, "\r\x1b[K{} {} {:3.0f} % {}", title_, bar, fraction * 100, detail);
  std::fflush(stderr);
  drawn_ = true;
}

std::string human_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::clamp(seconds, 0.0, 1e9) + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string human_bytes(uint64_t bytes) {
  if (bytes < 1000) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  for (const char* unit : {"kB", "MB", "GB", "TB"}) {
    value /= 1000;
    if (value < 999.95) return fmt::format("{:.1f} {}", value, unit);
  }
  return fmt::format("{:.1f} PB", value / 1000);
}

}  // namespace millrace::apps
