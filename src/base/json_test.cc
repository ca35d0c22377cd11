#include "base/json.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace millrace {
namespace {

TEST(ParseJson, ParsesAndKeepsOrder) {
  const auto value = parse_json(R"({"b": 1, "a": [true, null, "x", 1.5]})");
  ASSERT_TRUE(value);
  EXPECT_EQ(json::serialize(*value), R"({"b":1,"a":[true,null,"x",1.5E0]})");
}

TEST(ParseJson, RefusesWithThePlace) {
  for (const char* bad : {"", "{", "{} x", "[1,]", "{\"a\":\"\xFF\"}", "nul", "\"\\ud800\""}) {
    const auto value = parse_json(bad);
    ASSERT_FALSE(value) << bad;
    EXPECT_EQ(value.error().code, Code::invalid_argument);
    EXPECT_NE(value.error().message.find("byte"), std::string::npos) << value.error().message;
  }
}

TEST(ParseJson, BoundsDepthAndSize) {
  EXPECT_TRUE(parse_json(std::string(64, '[') + std::string(64, ']')));
  EXPECT_FALSE(parse_json(std::string(65, '[') + std::string(65, ']')));
  EXPECT_FALSE(parse_json("[1, 2, 3]", {.max_bytes = 8}));
}

}  // namespace
}  // namespace millrace
