#include "base/random.h"

#include <sys/random.h>

#include "base/status.h"

namespace millrace {

uint64_t random_seed() {
  uint64_t seed = 0;
  const auto got = getrandom(&seed, sizeof seed, 0);
  MR_CHECK(got == sizeof seed, "getrandom failed");
  return seed;
}

}  // namespace millrace
