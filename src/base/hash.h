// Hashes: XXH3 for checksums and tables (not against an adversary), SHA-256 for what must not be forged.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace millrace {

uint64_t hash64(std::span<const std::byte> bytes, uint64_t seed = 0);  // XXH3-64
uint64_t hash64(std::string_view text, uint64_t seed = 0);

// SHA-256 in pieces; hex() ends it.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::string_view bytes);
  std::string hex();

 private:
  void* context_;
};

// True if equal, in time that depends on the lengths alone.
bool equal_constant_time(std::string_view a, std::string_view b);

}  // namespace millrace
