// Which build this is.
#pragma once
#include <string>

namespace millrace::apps {

std::string version_line();  // "millrace 0.1.0 (commit abc1234, amx)"

}  // namespace millrace::apps
