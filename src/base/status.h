// Status: what went wrong, in words for a person and a code for a program. Expected<T>: a T or a Status.
//
// Expected conditions (bad input, a full queue, a dead peer) return a Status; broken invariants stop the process with
// MR_CHECK. Codes are gRPC's canonical numbers (grpc/status.h), so a code keeps its number on the wire between
// processes; only src/gateway turns codes into HTTP.
//
// What a caller may do: unavailable = the same call may succeed later; resource_exhausted = later, when load falls (see
// retry_after_s); invalid_argument, out_of_range, not_found, permission_denied, unauthenticated, unimplemented = do not
// repeat unchanged; data_loss = the bytes are bad, repair first; internal = a bug of ours.
#pragma once
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace millrace {

enum class Code : int {
  ok = 0,
  cancelled = 1,
  unknown = 2,
  invalid_argument = 3,
  deadline_exceeded = 4,
  not_found = 5,
  already_exists = 6,
  permission_denied = 7,
  resource_exhausted = 8,
  failed_precondition = 9,
  aborted = 10,
  out_of_range = 11,
  unimplemented = 12,
  internal = 13,
  unavailable = 14,
  data_loss = 15,
  unauthenticated = 16,
};

std::string_view code_name(Code code);

struct [[nodiscard]] Status {
  Code code = Code::ok;
  std::string message;         // names the value and the limit, and what to do next
  std::string reason;          // short slug for programs, e.g. "context_length_exceeded"; may be empty
  std::string param;           // the request field or flag at fault; may be empty
  double retry_after_s = 0;    // with resource_exhausted and unavailable: when to come back; 0 = unknown

  bool ok() const { return code == Code::ok; }
  std::string to_string() const;  // "invalid_argument: message"
};

template <class T>
using Expected = std::expected<T, Status>;

inline std::unexpected<Status> fail(Code code, std::string message) {
  return std::unexpected(Status{.code = code, .message = std::move(message)});
}
inline std::unexpected<Status> invalid(std::string message, std::string param = {}) {
  return std::unexpected(
      Status{.code = Code::invalid_argument, .message = std::move(message), .param = std::move(param)});
}

// Prints the message with its place and aborts. Never on a peer's or a user's input.
[[noreturn]] void check_failed(const char* file, int line, const char* expression, const std::string& message);
#define MR_CHECK(condition, message) \
  ((condition) ? (void)0 : ::millrace::check_failed(__FILE__, __LINE__, #condition, (message)))

// `auto file = MR_TRY(MappedFile::open(path));` gives the value, or returns the Status from the enclosing function. Not
// inside an aggregate's braces or beside arguments that own memory: a return leaks them. (A GNU statement expression.)
#define MR_TRY(expression) MR_TRY_NUMBERED_(expression, __COUNTER__)
#define MR_TRY_NUMBERED_(expression, number) MR_TRY_NAMED_(expression, number)
#define MR_TRY_NAMED_(expression, number)                                           \
  ({                                                                                \
    auto mr_result_##number = (expression);                                         \
    if (!mr_result_##number) return std::unexpected(std::move(mr_result_##number).error()); \
    ::millrace::internal::take(std::move(mr_result_##number));                      \
  })

namespace internal {
template <class T>
T take(std::expected<T, Status>&& result) {
  return std::move(*result);
}
inline void take(std::expected<void, Status>&&) {}
}  // namespace internal

}  // namespace millrace
