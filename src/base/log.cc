#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>

namespace millrace {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return spdlog::level::debug;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::warn: return spdlog::level::warn;
    case LogLevel::error: return spdlog::level::err;
    case LogLevel::off: return spdlog::level::off;
  }
  return spdlog::level::warn;
}

spdlog::logger& logger() {
  static spdlog::logger* instance = [] {
    // Never destroyed: other threads may log while the process exits.
    auto* made = new spdlog::logger("millrace", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
    made->set_level(spdlog::level::warn);
    return made;
  }();
  static const bool from_environment = [] {
    if (const char* name = std::getenv("MILLRACE_LOG")) {
      const std::string_view n(name);
      if (n == "debug") instance->set_level(spdlog::level::debug);
      if (n == "info") instance->set_level(spdlog::level::info);
      if (n == "warn") instance->set_level(spdlog::level::warn);
      if (n == "error") instance->set_level(spdlog::level::err);
      if (n == "off") instance->set_level(spdlog::level::off);
    }
    return true;
  }();
  (void)from_environment;
  return *instance;
}

}  // namespace

void set_log_level(LogLevel level) { logger().set_level(to_spdlog(level)); }

bool set_log_level(std::string_view name) {
  static constexpr std::string_view kNames[] = {"debug", "info", "warn", "error", "off"};
  for (int i = 0; i < 5; ++i) {
    if (name == kNames[i]) {
      set_log_level(static_cast<LogLevel>(i));
      return true;
    }
  }
  return false;
}

bool log_enabled(LogLevel level) { return logger().should_log(to_spdlog(level)); }

void log_line(LogLevel level, std::string_view room, std::string_view message) {
  logger().log(to_spdlog(level), "[{}] {}", room, message);
}

}  // namespace millrace
