// The served document and the routes must tell the same story.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <set>

#include "base/json.h"
#include "gateway/internal/api.h"
#include "gateway/internal/embedded_files.h"
#include "gateway/internal/fake_generator.h"
#include "gateway/internal/generation_plan.h"

namespace millrace::gateway {
namespace {

json::value document() {
  auto parsed = parse_json(kOpenApiJson);
  MR_CHECK(parsed.has_value(), parsed.error().message);
  return *parsed;
}

TEST(OpenApi, EveryRouteIsDescribedAndNothingElse) {
  const json::value doc = document();
  EXPECT_EQ(doc.at("openapi").as_string(), "3.1.0");
  EXPECT_NE(doc.at("info").at("version").as_string(), "0.0.0");  // the build puts ours in
  std::set<std::string> described, served;
  for (const auto& [path, operations] : doc.at("paths").as_object())
    for (const auto& [method, operation] : operations.as_object())
      described.insert(std::string(method) + " " + std::string(path));
  for (const Route& route : routes()) {
    std::string method(route.method);
    for (char& c : method) c = static_cast<char>(tolower(c));
    const std::string name = method + " " + std::string(route.path);
    served.insert(name);
    if (!described.contains(name)) continue;  // the comparison below names it
    const json::object& operation =
        doc.at("paths").as_object().at(std::string(route.path)).as_object().at(method).as_object();
    EXPECT_EQ(operation.at("security").as_array().empty(), route.open) << route.path;
    EXPECT_EQ(operation.contains("requestBody"), route.method == "POST") << route.path;
  }
  EXPECT_EQ(described, served);
}

void check_references(const json::value& doc, const json::value& value) {
  if (value.is_array()) {
    for (const json::value& entry : value.get_array()) check_references(doc, entry);
  } else if (value.is_object()) {
    for (const auto& [key, entry] : value.get_object()) {
      if (key == "$ref") {
        json::error_code error;
        const std::string pointer = std::string(entry.as_string()).substr(1);
        EXPECT_NE(doc.find_pointer(pointer, error), nullptr) << pointer;
      } else {
        check_references(doc, entry);
      }
    }
  }
}

TEST(OpenApi, ReferencesLeadSomewhere) { check_references(document(), document()); }

// A field that is described is read: a value of a kind that it cannot have (nothing may be both a number and
// an object) is refused by its name. What nobody reads would be ignored, whatever it says.
TEST(OpenApi, DescribedFieldsAreRead) {
  const ServedModel model = fake_served_model();
  const json::value doc = document();
  for (const bool chat : {true, false}) {
    const json::object& schema = doc.at("components")
                                     .at("schemas")
                                     .at(chat ? "ChatRequest" : "CompletionRequest")
                                     .at("properties")
                                     .as_object();
    EXPECT_GT(schema.size(), 30u);
    for (const auto& [name, description] : schema) {
      bool read = false;
      for (const json::value& wrong : {json::value(7), json::value(json::object{{"x", 1}})}) {
        json::object body =
            chat ? json::object{{"messages", json::array{json::object{{"role", "user"}, {"content", "hi"}}}}}
                 : json::object{{"prompt", "hi"}};
        body[name] = wrong;
        const auto plan = chat ? plan_chat(body, model) : plan_completion(body, model);
        read |= !plan && plan.error().param == std::string_view(name);
      }
      EXPECT_TRUE(read) << (chat ? "chat: " : "completions: ") << name;
    }
  }
}

TEST(OpenApi, ThePageCarriesItsStyleAndScript) {
  EXPECT_NE(kChatPage.find("<style>"), kChatPage.npos);
  EXPECT_NE(kChatPage.find("</script>"), kChatPage.npos);
  EXPECT_EQ(kChatPage.find("href=\"chat.css\""), kChatPage.npos);
  EXPECT_EQ(kChatPage.find("src=\"chat.js\""), kChatPage.npos);
}

TEST(Routes, PathsAndMethods) {
  EXPECT_EQ(find_route("GET", "/v1/models").pattern, "/v1/models");
  EXPECT_EQ(find_route("GET", "/v1/models/a/b").pattern, "/v1/models/{model}");
  EXPECT_EQ(find_route("GET", "/v1/models/").pattern, "");
  EXPECT_EQ(find_route("GET", "/v1/modelsx").pattern, "");
  EXPECT_NE(find_route("HEAD", "/version").route, nullptr);
  EXPECT_EQ(find_route("DELETE", "/version").route, nullptr);
  EXPECT_EQ(find_route("DELETE", "/version").allow, "GET, HEAD, OPTIONS");
}

}  // namespace
}  // namespace millrace::gateway
