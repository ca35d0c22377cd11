// Expressions: names, look-ups, calls.
#include <fmt/core.h>

#include <functional>

#include "model/internal/jinja_interpreter.h"

namespace millrace::model::jinja {

Value Interpreter::eval(const Node& node) {
  const Deeper deeper(*this);
  spend(1);
  line_ = node.line;
  switch (node.kind) {
    case NodeKind::constant:
      return static_cast<const ConstantNode&>(node).value;
    case NodeKind::name:
      return eval_name(static_cast<const NameNode&>(node));
    case NodeKind::list:
    case NodeKind::tuple:
    case NodeKind::dict:
      return eval_items(static_cast<const ItemsNode&>(node));
    case NodeKind::concat:
      return eval_concat(static_cast<const ItemsNode&>(node));
    case NodeKind::condition: {
      const auto& c = static_cast<const ConditionNode&>(node);
      if (truth(eval(*c.test))) return eval(*c.then);
      if (c.otherwise) return eval(*c.otherwise);
      return Value::undefined("the inline if-expression evaluated to false and no else section was defined");
    }
    case NodeKind::logic:
      return eval_logic(static_cast<const ChainNode&>(node));
    case NodeKind::negation:
      return Value::boolean(!truth(eval(*static_cast<const OneNode&>(node).operand)));
    case NodeKind::compare:
      return eval_compare(static_cast<const ChainNode&>(node));
    case NodeKind::arithmetic:
      return eval_arithmetic(static_cast<const ChainNode&>(node));
    case NodeKind::unary: {
      const auto& one = static_cast<const OneNode&>(node);
      return negate(eval(*one.operand), one.op);
    }
    case NodeKind::attribute: {
      const auto& a = static_cast<const AttributeNode&>(node);
      return attribute(eval(*a.object), a.name);
    }
    case NodeKind::item:
      return eval_item(static_cast<const ItemNode&>(node));
    case NodeKind::slice:
      fail_type("a slice can only be a single index");
    case NodeKind::call:
      return eval_call(static_cast<const CallNode&>(node));
    case NodeKind::filter:
      return eval_filter(node, nullptr);
    case NodeKind::test:
      return eval_test(static_cast<const CallNode&>(node));
    default:
      fail_type("a statement stands where an expression should");
  }
}

const Value* Interpreter::find(std::string_view name) const {
  for (const Scope* scope = scope_.get(); scope; scope = scope->parent.get())
    if (const Value* value = scope->find_here(name)) return value;
  return context_->find(name);
}

namespace {

class BlockReference : public HostObject {  // self.name()
 public:
  using Render = std::function<Value()>;
  explicit BlockReference(Render render) : render_(std::move(render)) {}
  std::string_view type_name() const override { return "BlockReference"; }
  bool callable() const override { return true; }
  Value call(Interpreter&, Args) override { return render_(); }

 private:
  Render render_;
};

class SelfObject : public HostObject {
 public:
  using Find = std::function<std::optional<Value>(std::string_view)>;
  explicit SelfObject(Find find) : find_(std::move(find)) {}
  std::string_view type_name() const override { return "TemplateReference"; }
  std::optional<Value> attribute(Interpreter&, std::string_view name) override { return find_(name); }

 private:
  Find find_;
};

}  // namespace

Value Interpreter::eval_name(const NameNode& node) {
  if (const Value* value = find(node.name)) return *value;
  if (auto value = find_global(node.name)) return std::move(*value);
  if (node.name == "self" && !template_.blocks.empty())
    return Value::host(std::make_shared<SelfObject>([this](std::string_view name) -> std::optional<Value> {
      for (const auto& [block_name, block] : template_.blocks)
        if (block_name == name)
          return Value::host(std::make_shared<BlockReference>([this, b = block] { return block_text(*b); }));
      return std::nullopt;
    }));
  return Value::undefined(fmt::format("'{}' is undefined", node.name));
}

Value Interpreter::eval_items(const ItemsNode& node) {
  if (node.kind == NodeKind::dict) {
    auto dict = std::make_shared<DictObject>();
    for (size_t i = 0; i < node.items.size(); i += 2) {
      Value key = eval(*node.items[i]);
      dict->set(std::move(key), eval(*node.items[i + 1]));
    }
    return Value::dict(std::move(dict));
  }
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const NodePtr& item : node.items) items.push_back(eval(*item));
  return node.kind == NodeKind::list ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

Value Interpreter::eval_concat(const ItemsNode& node) {
  Text out;
  for (const NodePtr& item : node.items) {
    const Text part = to_text(eval(*item));
    spend_text_growth(out.size(), part.size());
    out.append(part);
  }
  return Value::string(std::move(out));
}

Value Interpreter::eval_logic(const ChainNode& node) {
  const bool stop_at = node.ops.front() == "or";
  for (size_t i = 0; i + 1 < node.operands.size(); ++i) {
    Value value = eval(*node.operands[i]);
    if (truth(value) == stop_at) return value;
  }
  return eval(*node.operands.back());
}

Value Interpreter::eval_compare(const ChainNode& node) {
  Value left = eval(*node.operands[0]);
  for (size_t i = 0; i < node.ops.size(); ++i) {
    Value right = eval(*node.operands[i + 1]);
    const std::string& op = node.ops[i];
    bool holds = false;
    if (op == "in" || op == "not in")
      holds = contains(right, left) == (op == "in");
    else
      holds = compare_by(op, left, right);
    if (!holds) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::eval_arithmetic(const ChainNode& node) {
  Value left = eval(*node.operands[0]);
  for (size_t i = 0; i < node.ops.size(); ++i) {
    const Value right = eval(*node.operands[i + 1]);
    line_ = node.line;
    left = arithmetic(node.ops[i], left, right);
  }
  return left;
}

Value Interpreter::eval_item(const ItemNode& node) {
  const Value object = eval(*node.object);
  if (node.index->kind != NodeKind::slice) return item(object, eval(*node.index));
  const auto& slice = static_cast<const SliceNode&>(*node.index);
  auto part = [this](const NodePtr& p) { return p ? eval(*p) : Value::none(); };
  const Value start = part(slice.start), stop = part(slice.stop), step = part(slice.step);
  if (object.is(Kind::undefined)) fail_undefined(object);
  switch (object.kind()) {
    case Kind::string:
    case Kind::list:
    case Kind::tuple:
    case Kind::range:
      return slice_of(object, start, stop, step);
    default:
      fail_type(fmt::format("'{}' object cannot be sliced", object.type_name()));
  }
}

// object.name: Python's attribute first, then an item.
Value Interpreter::attribute(const Value& object, std::string_view name) {
  if (object.is(Kind::undefined)) fail_undefined(object);
  if (object.is(Kind::host)) {
    if (auto value = object.host().attribute(*this, name)) return std::move(*value);
  } else if (modifies_in_place(object, name)) {
    return Value::undefined(fmt::format(
        "'{}' of a {} would change it in place, which chat templates may not do", name, object.type_name()));
  } else if (const Method method = find_method(object, name)) {
    return make_bound_method(object, name, method);
  } else if (object.is(Kind::dict)) {
    if (const Value* value = object.dict().find(name)) return *value;
  } else if (object.is(Kind::tuple) && object.list_object().group && (name == "grouper" || name == "list")) {
    return object.items()[name == "list"];
  } else if (object.is(Kind::range) && (name == "start" || name == "stop" || name == "step")) {
    const RangeObject& r = object.range();
    return Value::integer(name == "start" ? r.start : name == "stop" ? r.stop : r.step);
  }
  const std::string owner = object.is(Kind::none) ? "None" : fmt::format("{} object", object.type_name());
  return Value::undefined(fmt::format("'{}' has no attribute '{}'", owner, name));
}

// object[key]: an item first, then, for a string, Python's attribute.
Value Interpreter::item(const Value& object, const Value& key) {
  if (object.is(Kind::undefined)) fail_undefined(object);
  bool found = false;
  Value value = subscript(object, key, found);
  if (found) return value;
  if (key.is(Kind::string) && !object.is(Kind::dict)) return attribute(object, key.bytes());
  if (key.is(Kind::string)) {
    if (modifies_in_place(object, key.bytes()) || find_method(object, key.bytes()))
      return attribute(object, key.bytes());
  }
  const std::string owner = object.is(Kind::none) ? "None" : fmt::format("{} object", object.type_name());
  return Value::undefined(key.is(Kind::string) ? fmt::format("'{}' has no attribute '{}'", owner, key.bytes())
                                               : fmt::format("{} has no element {}", owner, repr(key)));
}

Args Interpreter::eval_arguments(const Arguments& arguments) {
  Args args;
  args.positional.reserve(arguments.positional.size());
  for (const NodePtr& node : arguments.positional) args.positional.push_back(eval(*node));
  for (const auto& [name, node] : arguments.named) {
    for (const auto& earlier : args.named)
      if (earlier.first == name) fail_type(fmt::format("keyword argument repeated: {}", name));
    args.named.emplace_back(name, eval(*node));
  }
  if (arguments.star)
    for (Value& value : items_of(eval(*arguments.star))) args.positional.push_back(std::move(value));
  if (arguments.star_star) {
    const Value more = eval(*arguments.star_star);
    if (!more.is(Kind::dict))
      fail_type(fmt::format("argument after ** must be a mapping, not {}", more.type_name()));
    for (const auto& [key, value] : more.dict().items) {
      if (!key.is(Kind::string)) fail_type("keywords must be strings");
      for (const auto& earlier : args.named)
        if (earlier.first == key.bytes())
          fail_type(fmt::format("keyword argument repeated: {}", key.bytes()));
      args.named.emplace_back(key.bytes(), value);
    }
  }
  return args;
}

Value Interpreter::call(const Value& callee, Args args) {
  const Deeper deeper(*this);
  spend(1);
  if (callee.is(Kind::undefined)) fail_undefined(callee);
  if (!callee.is(Kind::host) || !callee.host().callable())
    fail_type(fmt::format("'{}' object is not callable", callee.type_name()));
  return callee.host().call(*this, std::move(args));
}

Value Interpreter::eval_call(const CallNode& node) {
  // obj.method(...): the common case goes without a bound method in between.
  if (node.subject->kind == NodeKind::attribute) {
    const auto& a = static_cast<const AttributeNode&>(*node.subject);
    const Value object = eval(*a.object);
    if (!object.is(Kind::host) && !object.is(Kind::undefined) && !modifies_in_place(object, a.name))
      if (const Method method = find_method(object, a.name)) {
        Args args = eval_arguments(node.arguments);
        line_ = node.line;
        return method(*this, object, args);
      }
    const Value callee = attribute(object, a.name);
    Args args = eval_arguments(node.arguments);
    line_ = node.line;
    return call(callee, std::move(args));
  }
  const Value callee = eval(*node.subject);
  Args args = eval_arguments(node.arguments);
  line_ = node.line;
  return call(callee, std::move(args));
}

Value Interpreter::eval_filter(const Node& node, const Value* block_text) {
  if (node.kind != NodeKind::filter) return eval(node);
  const Deeper deeper(*this);
  const auto& filter = static_cast<const CallNode&>(node);
  const Value subject = !filter.subject                            ? *block_text
                        : filter.subject->kind == NodeKind::filter ? eval_filter(*filter.subject, block_text)
                                                                   : eval(*filter.subject);
  Args args = eval_arguments(filter.arguments);
  line_ = node.line;
  return apply_filter(filter.name, subject, std::move(args));
}

Value Interpreter::eval_test(const CallNode& node) {
  const Value subject = eval(*node.subject);
  Args args = eval_arguments(node.arguments);
  line_ = node.line;
  return Value::boolean(apply_test(node.name, subject, std::move(args)));
}

Value Interpreter::apply_filter(std::string_view name, const Value& subject, Args args) {
  spend(1);
  const Filter filter = find_filter(name);
  if (!filter) fail_type(fmt::format("no filter named '{}'", name));
  return filter(*this, subject, args);
}

bool Interpreter::apply_test(std::string_view name, const Value& subject, Args args) {
  spend(1);
  const Test test = find_test(name);
  if (!test) fail_type(fmt::format("no test named '{}'", name));
  return test(*this, subject, args);
}

}  // namespace millrace::model::jinja
