#include "model/chat_template.h"

#include <fmt/core.h>

#include <boost/json.hpp>

#include "base/utf8.h"
#include "model/internal/jinja_interpreter.h"

namespace millrace::model {
namespace {

// The tokenizer's own texts among the context; all other strings are the request's.
constexpr std::string_view kTemplateSide[] = {
    "bos_token", "eos_token", "unk_token",  "sep_token",
    "pad_token", "cls_token", "mask_token", "additional_special_tokens"};

jinja::Value to_value(const json::value& v, bool marked, int depth) {
  using jinja::Value;
  if (depth > jinja::kMaxValueDepth)
    jinja::fail_limit(fmt::format("the context nests deeper than the limit of {}", jinja::kMaxValueDepth));
  switch (v.kind()) {
    case json::kind::null:
      return Value::none();
    case json::kind::bool_:
      return Value::boolean(v.get_bool());
    case json::kind::int64:
      return Value::integer(v.get_int64());
    case json::kind::uint64:
      return Value::integer(static_cast<jinja::Int>(v.get_uint64()));
    case json::kind::double_:
      return Value::real(v.get_double());
    case json::kind::string: {
      const std::string_view text = v.get_string();
      return Value::string(jinja::Text(utf8_valid(text) ? std::string(text) : utf8_repair(text), marked));
    }
    case json::kind::array: {
      std::vector<Value> items;
      items.reserve(v.get_array().size());
      for (const json::value& item : v.get_array()) items.push_back(to_value(item, marked, depth + 1));
      return Value::list(std::move(items));
    }
    case json::kind::object: {
      auto dict = std::make_shared<jinja::DictObject>();
      for (const auto& item : v.get_object()) {
        const std::string_view key = item.key();
        dict->set(Value::string(jinja::Text(utf8_valid(key) ? std::string(key) : utf8_repair(key), marked)),
                  to_value(item.value(), marked, depth + 1));
      }
      return Value::dict(std::move(dict));
    }
  }
  return Value::none();
}

std::shared_ptr<jinja::DictObject> to_context(const json::object& context) {
  auto dict = std::make_shared<jinja::DictObject>();
  for (const auto& item : context) {
    const std::string_view key = item.key();
    bool marked = true;
    for (const std::string_view name : kTemplateSide) marked = marked && key != name;
    dict->set(jinja::Value::string(key), to_value(item.value(), marked, 1));
  }
  return dict;
}

Status to_status(const jinja::TemplateError& error, int line) {
  const int at = error.line != 0 ? error.line : line;
  std::string message = at > 0 ? fmt::format("chat template, line {}: {}", at, error.what()) : error.what();
  return Status{.code = error.code, .message = std::move(message), .reason = "chat_template_error"};
}

class JinjaChatTemplate final : public ChatTemplate {
 public:
  JinjaChatTemplate(std::unique_ptr<const jinja::Template> parsed, const TemplateLimits& limits)
      : parsed_(std::move(parsed)), limits_(limits) {}

  Expected<std::vector<RenderedSegment>> render(const json::value& context) const override {
    if (!context.is_object()) return invalid("a chat template's context must be a JSON object");
    jinja::Meter meter{limits_.max_steps, limits_.max_steps, limits_.max_output_bytes};
    int line = 1;
    try {
      auto values = to_context(context.get_object());
      const jinja::MeterScope scope(meter);
      // A level of the source may cost a few at run time (a macro's call, its body, the expression inside).
      jinja::Interpreter interpreter(*parsed_, std::move(values),
                                     {limits_.max_output_bytes, limits_.max_depth * kRunDepthFactor});
      try {
        return segments(interpreter.run());
      } catch (const jinja::TemplateError& error) {
        line = interpreter.line();
        return std::unexpected(to_status(error, line));
      }
    } catch (const jinja::TemplateError& error) {
      return std::unexpected(to_status(error, 0));
    } catch (const std::bad_alloc&) {
      return fail(Code::resource_exhausted, "the chat template ran out of memory");
    }
  }

 private:
  static constexpr int kRunDepthFactor = 4;

  static std::vector<RenderedSegment> segments(const jinja::Text& text) {
    std::vector<RenderedSegment> out;
    text.for_each_run([&](std::string_view run, bool marked) { out.push_back({std::string(run), marked}); });
    return out;
  }

  const std::unique_ptr<const jinja::Template> parsed_;
  const TemplateLimits limits_;
};

}  // namespace

Expected<std::shared_ptr<const ChatTemplate>> ChatTemplate::parse(std::string_view source,
                                                                  const TemplateLimits& limits) {
  if (source.size() > limits.max_source_bytes)
    return invalid(fmt::format("a chat template of {} bytes is over the limit of {}", source.size(),
                               limits.max_source_bytes));
  if (!utf8_valid(source)) return invalid("the chat template is not valid UTF-8");
  try {
    return std::make_shared<JinjaChatTemplate>(jinja::parse_template(source, limits.max_depth), limits);
  } catch (const jinja::TemplateError& error) {
    return std::unexpected(to_status(error, 0));
  } catch (const std::bad_alloc&) {
    return fail(Code::resource_exhausted, "no memory for the chat template");
  }
}

}  // namespace millrace::model
