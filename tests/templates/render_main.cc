// Renders chat templates for tests/templates/*.py: reads JSON lines {"template": "...", "context": {...}} and
// prints for each one JSON line: {"text": "...", "segments": [["...", true], ...]} or {"error": "...",
// "code": "..."}.
#include <boost/json.hpp>
#include <iostream>
#include <string>

#include "base/json.h"
#include "model/chat_template.h"

namespace {

using namespace millrace;

json::object render(const json::value& request) {
  auto error = [](const Status& status) {
    return json::object{{"error", status.message}, {"code", std::string(code_name(status.code))}};
  };
  const auto parsed = model::ChatTemplate::parse(std::string_view(request.at("template").as_string()));
  if (!parsed) return error(parsed.error());
  const auto segments = (*parsed)->render(request.at("context"));
  if (!segments) return error(segments.error());
  std::string text;
  json::array marks;
  for (const auto& segment : *segments) {
    text += segment.text;
    marks.push_back(json::array{json::value(segment.text), json::value(segment.from_request)});
  }
  return {{"text", text}, {"segments", std::move(marks)}};
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto request = parse_json(line, JsonLimits{.max_depth = 256});
    if (!request) {
      std::cerr << request.error().to_string() << "\n";
      return 1;
    }
    std::cout << json::serialize(render(*request)) << "\n" << std::flush;
  }
  return 0;
}
