// Global functions, and the objects they make.
#include <fmt/core.h>

#include <ctime>

#include "model/internal/jinja_interpreter.h"

namespace millrace::model::jinja {
namespace {

class FunctionObject : public HostObject {
 public:
  using Body = Value (*)(Interpreter&, Args&);
  FunctionObject(std::string_view name, Body body) : name_(name), body_(body) {}
  std::string_view type_name() const override { return "function"; }
  bool callable() const override { return true; }
  Value call(Interpreter& interpreter, Args args) override { return body_(interpreter, args); }
  std::string repr() const override { return fmt::format("<function {}>", name_); }

 private:
  std::string_view name_;
  Body body_;
};

class BoundMethodObject : public HostObject {
 public:
  BoundMethodObject(Value self, std::string_view name, Method method)
      : self_(std::move(self)), name_(name), method_(method) {}
  std::string_view type_name() const override { return "builtin_function_or_method"; }
  bool callable() const override { return true; }
  Value call(Interpreter& interpreter, Args args) override { return method_(interpreter, self_, args); }
  std::string repr() const override {
    return fmt::format("<built-in method {} of {} object>", name_, self_.type_name());
  }
  int depth() const override { return self_.depth() + 1; }

 private:
  Value self_;
  std::string name_;
  Method method_;
};

class NamespaceObject : public HostObject {
 public:
  std::string_view type_name() const override { return "Namespace"; }
  std::optional<Value> attribute(Interpreter&, std::string_view name) override {
    const Value* value = attributes.find(name);
    return value ? std::optional(*value) : std::nullopt;
  }
  std::string repr() const override {
    if (printing_) return "<Namespace {...}>";
    printing_ = true;
    std::string out = "<Namespace {";
    for (const auto& [key, value] : attributes.items)
      out += fmt::format("{}{}: {}", out.back() == '{' ? "" : ", ", jinja::repr(key), jinja::repr(value));
    printing_ = false;
    spend_text(static_cast<Int>(out.size()));
    return out + "}>";
  }
  void clear() override { attributes.clear(); }

  DictObject attributes;

 private:
  mutable bool printing_ = false;  // a namespace may hold itself
};

class CyclerObject : public HostObject {
 public:
  explicit CyclerObject(std::vector<Value> items) : items_(std::move(items)) {
    for (const Value& item : items_) depth_ = std::max(depth_, item.depth() + 1);
  }
  std::string_view type_name() const override { return "Cycler"; }
  int depth() const override { return depth_; }
  std::optional<Value> attribute(Interpreter&, std::string_view name) override {
    if (name == "current") return items_[position_];
    if (name == "pos") return Value::integer(static_cast<Int>(position_));
    if (name == "items") return Value::tuple(items_);
    const Value me = Value::host(self.lock());
    if (name == "next" || name == "__next__") return make_bound_method(me, "next", &CyclerObject::next);
    if (name == "reset") return make_bound_method(me, "reset", &CyclerObject::reset);
    return std::nullopt;
  }
  std::weak_ptr<HostObject> self;

 private:
  static Value next(Interpreter&, const Value& me, Args&) {
    auto& cycler = static_cast<CyclerObject&>(me.host());
    Value value = cycler.items_[cycler.position_];
    cycler.position_ = (cycler.position_ + 1) % cycler.items_.size();
    return value;
  }
  static Value reset(Interpreter&, const Value& me, Args&) {
    static_cast<CyclerObject&>(me.host()).position_ = 0;
    return Value::none();
  }
  std::vector<Value> items_;
  size_t position_ = 0;
  int depth_ = 1;
};

class JoinerObject : public HostObject {
 public:
  explicit JoinerObject(Value separator) : separator_(std::move(separator)) {}
  std::string_view type_name() const override { return "Joiner"; }
  bool callable() const override { return true; }
  int depth() const override { return separator_.depth() + 1; }
  Value call(Interpreter&, Args) override {
    if (used_) return separator_;
    used_ = true;
    return Value::string("");
  }

 private:
  Value separator_;
  bool used_ = false;
};

int64_t range_bound(const Value& v) {
  const Int i = integer_of(v, "range() argument");
  if (i > INT64_MAX / 2 || i < INT64_MIN / 2) fail_type("range() argument is too large");
  return static_cast<int64_t>(i);
}

Value range(Interpreter&, Args& args) {
  if (!args.named.empty()) fail_type("range() takes no keyword arguments");
  const auto& p = args.positional;
  if (p.empty() || p.size() > 3) fail_type(fmt::format("range() takes 1 to 3 arguments, got {}", p.size()));
  const int64_t start = p.size() > 1 ? range_bound(p[0]) : 0, stop = range_bound(p[p.size() > 1 ? 1 : 0]);
  const int64_t step = p.size() > 2 ? range_bound(p[2]) : 1;
  if (step == 0) fail_type("range() arg 3 must not be zero");
  Value made = Value::range(start, stop, step);
  constexpr int64_t kMaxRange = 100'000;  // jinja2's sandbox has the same bound
  if (made.range().size() > kMaxRange)
    fail_limit(fmt::format("a range of {} items is over the limit of {}", made.range().size(), kMaxRange));
  return made;
}

// dict(pairs or a dict, name=value, ...)
std::shared_ptr<DictObject> dict_from(std::string_view function, Args& args) {
  auto dict = std::make_shared<DictObject>();
  if (args.positional.size() > 1) fail_type(fmt::format("{}() takes at most 1 argument", function));
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (source.is(Kind::undefined)) {
      // nothing to copy
    } else if (source.is(Kind::dict)) {
      for (const auto& [key, value] : source.dict().items) dict->set(key, value);
    } else {
      for (const Value& pair : items_of(source)) {
        auto two = items_of(pair);
        if (two.size() != 2) fail_type(fmt::format("{}() needs pairs, got {} values", function, two.size()));
        dict->set(std::move(two[0]), std::move(two[1]));
      }
    }
  }
  for (auto& [name, value] : args.named) dict->set(Value::string(name), std::move(value));
  return dict;
}

Value make_dict(Interpreter&, Args& args) { return Value::dict(dict_from("dict", args)); }

Value make_cycler(Interpreter&, Args& args) {
  if (!args.named.empty()) fail_type("cycler() takes no keyword arguments");
  if (args.positional.empty()) fail_type("at least one item has to be provided to cycler()");
  const auto cycler = std::make_shared<CyclerObject>(std::move(args.positional));
  cycler->self = cycler;
  return Value::host(cycler);
}

Value make_joiner(Interpreter&, Args& args) {
  const Bound bound("joiner", args, {"sep"});
  return Value::host(std::make_shared<JoinerObject>(bound.has(0) ? bound[0] : Value::string(", ")));
}

Value raise_exception(Interpreter&, Args& args) {
  const Bound bound("raise_exception", args, {"message"}, 1);
  throw TemplateError(Code::invalid_argument, -1, to_text(bound[0]).bytes());
}

Value now_text(Interpreter&, Args& args) {
  const Bound bound("strftime_now", args, {"format"}, 1);
  return Value::string(strftime_now(bound.string(0, "")));
}

Value lipsum(Interpreter&, Args&) { fail_type("lipsum() makes random filler and is not supported"); }

Value namespace_of(Interpreter& interpreter, Args& args) {
  return make_namespace(interpreter, std::move(args));
}

constexpr std::pair<std::string_view, FunctionObject::Body> kGlobals[] = {
    {"range", range},           {"dict", make_dict},     {"namespace", namespace_of},
    {"cycler", make_cycler},    {"joiner", make_joiner}, {"raise_exception", raise_exception},
    {"strftime_now", now_text}, {"lipsum", lipsum},
};

}  // namespace

std::optional<Value> find_global(std::string_view name) {
  for (const auto& [known, body] : kGlobals)
    if (known == name) return Value::host(std::make_shared<FunctionObject>(known, body));
  return std::nullopt;
}

Value make_namespace(Interpreter& interpreter, Args args) {
  spend(4);  // each is kept to the end of the render
  const auto space = std::make_shared<NamespaceObject>();
  const auto initial = dict_from("namespace", args);
  for (const auto& [key, value] : initial->items) space->attributes.set(key, value);
  interpreter.keep_until_end(space);
  return Value::host(space);
}

void namespace_set(const Value& space, std::string_view name, Value value) {
  if (!space.is(Kind::host) || space.host().type_name() != "Namespace")
    fail_type("cannot assign an attribute to what is not a namespace");
  static_cast<NamespaceObject&>(space.host()).attributes.set(Value::string(name), std::move(value));
}

Value make_bound_method(const Value& self, std::string_view name, Method method) {
  return Value::host(std::make_shared<BoundMethodObject>(self, name, method));
}

std::string strftime_now(std::string_view format) {
  constexpr size_t kMaxFormat = 1024;
  if (format.size() > kMaxFormat)
    fail_limit(fmt::format("a date format is longer than {} bytes", kMaxFormat));
  if (format.empty()) return "";
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  localtime_r(&now.tv_sec, &parts);
  std::string with_micros;  // %f is Python's, not C's
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] == '%' && i + 1 < format.size()) {
      if (format[i + 1] == 'f')
        with_micros += fmt::format("{:06}", now.tv_nsec / 1000);
      else
        (with_micros += '%') += format[i + 1];
      ++i;
    } else {
      with_micros += format[i];
    }
  }
  with_micros += ' ';  // so that an empty result can be told from one that did not fit
  std::string out(with_micros.size() * 32 + 64, '\0');
  out.resize(std::strftime(out.data(), out.size(), with_micros.c_str(), &parts));
  if (!out.empty()) out.pop_back();
  return out;
}

}  // namespace millrace::model::jinja
