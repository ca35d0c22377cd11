// Ids with their own types: a RequestId does not convert to a PageId, nor to a plain integer by accident.
#pragma once
#include <compare>
#include <cstdint>
#include <functional>

namespace millrace {

template <class Tag, class Rep>
struct StrongId {
  Rep value{};
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep v) : value(v) {}
  constexpr auto operator<=>(const StrongId&) const = default;
};

// A position in a model's vocabulary. Kept a plain integer on purpose: tokens travel in large arrays through files,
// kernels and the wire, where a wrapper would only be unwrapped.
using TokenId = int32_t;

using RequestId = StrongId<struct RequestIdTag, uint64_t>;  // unique in one gateway's lifetime
using GroupId = StrongId<struct GroupIdTag, uint32_t>;      // a DP group's index in its deployment
using PageId = StrongId<struct PageIdTag, int32_t>;         // a KV page in one group's pool

}  // namespace millrace

template <class Tag, class Rep>
struct std::hash<millrace::StrongId<Tag, Rep>> {
  size_t operator()(millrace::StrongId<Tag, Rep> id) const noexcept { return std::hash<Rep>{}(id.value); }
};
