#include "apps/command.h"

#include <cstdio>

namespace millrace::apps {

int run_command(int, char**) {
  std::puts("millrace 0.1.0");
  return 0;
}

}  // namespace millrace::apps
