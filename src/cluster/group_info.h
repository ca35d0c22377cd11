// What a DP group says of itself when a gateway connects, and the limits both ends keep on the wire.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "base/strong_id.h"
#include "base/units.h"

namespace millrace::cluster {

struct GroupInfo {
  GroupId id;
  uint64_t model_fingerprint = 0;  // model::PackedModel::fingerprint(): equal means the same bits
  int64_t max_model_len = 0;       // tokens of prompt + reply
  int64_t kv_cache_bytes = 0;
  int max_num_seqs = 0, max_num_batched_tokens = 0, max_waiting = 0;
  bool prefix_caching = false;
  int compute_threads = 0;
  uint64_t boot_id = 0;   // drawn at each process start: tells a restart from a reconnect
  uint64_t restarts = 0;  // by its supervisor since that started
  int64_t pid = 0;
};

// Raised when an older peer would misread a message; peers of different versions refuse each other.
inline constexpr uint32_t kProtocolVersion = 3;

// One message. The largest legitimate ones are a prompt of the gateway's 16 MiB body and the
// log-probabilities of a long prompt: 131,072 tokens with 20 alternatives of 9 bytes are 24 MiB.
inline constexpr size_t kMaxMessageBytes = 64 * kMiB;
// A batch is cut into messages of about this size, so that a long one does not delay the next step's news.
inline constexpr size_t kMessageTargetBytes = 1 * kMiB;

// A group speaks at least this often; a gateway too. The issue asks for 250 ms; the rest is room for a busy
// machine.
inline constexpr std::chrono::milliseconds kHeartbeatInterval{150};
inline constexpr std::chrono::milliseconds kPingInterval{1000};
// Silence after which the other side is given up: over 30 heartbeats, 10 pings. A live process starved for
// that long on an overloaded machine is dropped wrongly, which costs its requests a resume and nothing else.
inline constexpr std::chrono::milliseconds kGroupSilenceLimit{5000};
inline constexpr std::chrono::milliseconds kGatewaySilenceLimit{10000};
static_assert(kGroupSilenceLimit > 10 * kHeartbeatInterval && kGatewaySilenceLimit > 5 * kPingInterval);

}  // namespace millrace::cluster
