// The log: one line a message on standard error, "time level [room] message". Quiet by default (warnings and up);
// MILLRACE_LOG=debug|info|warn|error changes it. Thread-safe.
#pragma once
#include <fmt/core.h>

#include <string>
#include <string_view>

namespace millrace {

enum class LogLevel { debug, info, warn, error, off };

void set_log_level(LogLevel level);
bool set_log_level(std::string_view name);  // false: no such level
bool log_enabled(LogLevel level);
void log_line(LogLevel level, std::string_view room, std::string_view message);

template <class... Args>
void log(LogLevel level, std::string_view room, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) log_line(level, room, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace millrace
