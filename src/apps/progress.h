// A progress bar on standard error: one line redrawn on a terminal, a line every ten percent in a log.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace millrace::apps {

class ProgressBar {
 public:
  explicit ProgressBar(std::string title);
  ~ProgressBar();  // ends the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  // fraction in [0, 1]; detail is shown behind the bar. Cheap: redraws at most ten times a second. One thread at a time.
  void update(double fraction, std::string_view detail);

 private:
  void draw(double fraction, std::string_view detail);
  const std::string title_;
  const bool terminal_;
  int64_t last_draw_ns_ = 0;
  int last_tenth_ = -1;
  bool drawn_ = false;
  bool complete_ = false;
};

std::string human_duration(double seconds);  // "41 s", "3 min 20 s", "2 h 5 min"
std::string human_bytes(uint64_t bytes);  // "98.4 MB", powers of 1000 as download tools print

}  // namespace millrace::apps
