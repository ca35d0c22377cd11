#include <fmt/core.h>

#include <charconv>
#include <cmath>

#include "model/internal/jinja_parser.h"

namespace millrace::model::jinja {

void Parser::raise(Node& node, int child_height) const {
  node.height = std::max(node.height, child_height + 1);
  if (node.height > max_depth_)
    throw TemplateError(Code::resource_exhausted, node.line,
                        fmt::format("nested deeper than the limit of {}", max_depth_));
}

template <class T>
std::unique_ptr<T> Parser::finish(std::unique_ptr<T> node,
                                  std::initializer_list<const Node*> children) const {
  for (const Node* child : children)
    if (child) raise(*node, child->height);
  return node;
}

bool Parser::at_tuple_end(Names ends) const {
  const Token& t = current();
  if (t.kind == TokenKind::variable_end || t.kind == TokenKind::block_end || t.is_symbol(")")) return true;
  for (const std::string_view end : ends)
    if (t.is_name(end)) return true;
  return false;
}

NodePtr Parser::parse_tuple(bool with_condition, bool parentheses, Names ends) {
  auto tuple = std::make_unique<ItemsNode>(NodeKind::tuple, current().line);
  bool comma = false;
  while (true) {
    if (!tuple->items.empty()) expect_symbol(",");
    if (at_tuple_end(ends)) break;
    tuple->items.push_back(parse_expression(with_condition));
    raise(*tuple, tuple->items.back()->height);
    if (!current().is_symbol(",")) break;
    comma = true;
  }
  if (!comma) {
    if (!tuple->items.empty()) return std::move(tuple->items.front());
    if (!parentheses) unexpected("an expression");
  }
  return tuple;
}

NodePtr Parser::parse_expression(bool with_condition) {
  const Nest nest(*this);
  return with_condition ? parse_condition() : parse_logic("or");
}

NodePtr Parser::parse_condition() {
  NodePtr value = parse_logic("or");
  while (current().is_name("if")) {
    auto node = std::make_unique<ConditionNode>(take().line);
    node->then = std::move(value);
    node->test = parse_logic("or");
    if (skip_name("else")) {
      const Nest nest(*this);
      node->otherwise = parse_condition();
    }
    const std::initializer_list<const Node*> children = {node->then.get(), node->test.get(),
                                                         node->otherwise.get()};
    value = finish(std::move(node), children);
  }
  return value;
}

NodePtr Parser::parse_logic(std::string_view word) {
  NodePtr first = word == "or" ? parse_logic("and") : parse_not();
  if (!current().is_name(word)) return first;
  auto node = std::make_unique<ChainNode>(NodeKind::logic, first->line);
  raise(*node, first->height);
  node->operands.push_back(std::move(first));
  while (skip_name(word)) {
    node->ops.emplace_back(word);
    node->operands.push_back(word == "or" ? parse_logic("and") : parse_not());
    raise(*node, node->operands.back()->height);
  }
  return node;
}

NodePtr Parser::parse_not() {
  if (!current().is_name("not")) return parse_compare();
  const int line = take().line;
  const Nest nest(*this);
  auto node = std::make_unique<OneNode>(NodeKind::negation, line, parse_not());
  raise(*node, node->operand->height);
  return node;
}

NodePtr Parser::parse_compare() {
  NodePtr first = parse_sum();
  auto node = std::make_unique<ChainNode>(NodeKind::compare, first->line);
  while (true) {
    const Token& t = current();
    std::string op;
    if (t.kind == TokenKind::symbol && (t.text == "==" || t.text == "!=" || t.text == "<" || t.text == ">" ||
                                        t.text == "<=" || t.text == ">="))
      op = take().text;
    else if (skip_name("in"))
      op = "in";
    else if (t.is_name("not") && look().is_name("in")) {
      take();
      take();
      op = "not in";
    } else {
      break;
    }
    if (node->operands.empty()) {
      raise(*node, first->height);
      node->operands.push_back(std::move(first));
    }
    node->ops.push_back(std::move(op));
    node->operands.push_back(parse_sum());
    raise(*node, node->operands.back()->height);
  }
  return node->operands.empty() ? std::move(first) : std::move(node);
}

NodePtr Parser::parse_chain(Names symbols, NodePtr (Parser::*operand)()) {
  NodePtr first = (this->*operand)();
  auto matches = [&] {
    for (const std::string_view s : symbols)
      if (current().is_symbol(s)) return true;
    return false;
  };
  if (!matches()) return first;
  auto node = std::make_unique<ChainNode>(NodeKind::arithmetic, first->line);
  raise(*node, first->height);
  node->operands.push_back(std::move(first));
  while (matches()) {
    node->ops.push_back(take().text);
    node->operands.push_back((this->*operand)());
    raise(*node, node->operands.back()->height);
  }
  return node;
}

NodePtr Parser::parse_sum() { return parse_chain({"+", "-"}, &Parser::parse_concat); }

NodePtr Parser::parse_concat() {
  NodePtr first = parse_product();
  if (!current().is_symbol("~")) return first;
  auto node = std::make_unique<ItemsNode>(NodeKind::concat, first->line);
  raise(*node, first->height);
  node->items.push_back(std::move(first));
  while (skip_symbol("~")) {
    node->items.push_back(parse_product());
    raise(*node, node->items.back()->height);
  }
  return node;
}

NodePtr Parser::parse_product() { return parse_chain({"*", "/", "//", "%"}, &Parser::parse_power); }
NodePtr Parser::parse_power() { return parse_chain({"**"}, &Parser::parse_unary); }

NodePtr Parser::parse_unary(bool with_filter) {
  NodePtr node;
  if (current().is_symbol("-") || current().is_symbol("+")) {
    const Nest nest(*this);
    const Token sign = take();
    auto one = std::make_unique<OneNode>(NodeKind::unary, sign.line, parse_unary(false), sign.text[0]);
    raise(*one, one->operand->height);
    node = std::move(one);
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return with_filter ? parse_filter_expression(std::move(node)) : std::move(node);
}

NodePtr Parser::parse_number() {
  const Token token = take();
  if (token.kind == TokenKind::real) {
    double value = 0;
    const auto [end, error] =
        std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    if (error == std::errc::result_out_of_range)  // Python reads 1e999 as inf and 1e-999 as 0
      value = token.text.find("e-") == std::string::npos && token.text.find("E-") == std::string::npos
                  ? HUGE_VAL
                  : 0;
    return std::make_unique<ConstantNode>(token.line, Value::real(value));
  }
  int base = 10;
  std::string_view digits = token.text;
  if (digits.size() > 2 && digits[0] == '0' && (digits[1] | 0x20) >= 'a') {
    const char c = static_cast<char>(digits[1] | 0x20);
    base = c == 'x' ? 16 : c == 'o' ? 8 : 2;
    digits.remove_prefix(2);
  }
  const auto value = parse_int(digits, base);
  if (!value) fail_syntax(token.line, fmt::format("the integer {} is too large", token.text));
  return std::make_unique<ConstantNode>(token.line, Value::integer(*value));
}

NodePtr Parser::parse_primary() {
  const Token& t = current();
  const int line = t.line;
  switch (t.kind) {
    case TokenKind::name: {
      std::string name = take().text;
      if (name == "true" || name == "True") return std::make_unique<ConstantNode>(line, Value::boolean(true));
      if (name == "false" || name == "False")
        return std::make_unique<ConstantNode>(line, Value::boolean(false));
      if (name == "none" || name == "None") return std::make_unique<ConstantNode>(line, Value::none());
      if (!specials_.empty()) {
        specials_.back().varargs |= name == "varargs";
        specials_.back().kwargs |= name == "kwargs";
        specials_.back().caller |= name == "caller";
      }
      return std::make_unique<NameNode>(line, std::move(name));
    }
    case TokenKind::string: {
      std::string text = take().text;
      while (current().kind == TokenKind::string) text += take().text;
      return std::make_unique<ConstantNode>(line, Value::string(text));
    }
    case TokenKind::integer:
    case TokenKind::real:
      return parse_number();
    default:
      break;
  }
  if (skip_symbol("(")) {
    NodePtr node = parse_tuple(true, true);
    expect_symbol(")");
    return node;
  }
  if (t.is_symbol("[")) return parse_list();
  if (t.is_symbol("{")) return parse_dict();
  unexpected("an expression");
}

NodePtr Parser::parse_list() {
  auto node = std::make_unique<ItemsNode>(NodeKind::list, take().line);
  while (!current().is_symbol("]")) {
    if (!node->items.empty()) expect_symbol(",");
    if (current().is_symbol("]")) break;
    node->items.push_back(parse_expression());
    raise(*node, node->items.back()->height);
  }
  expect_symbol("]");
  return node;
}

NodePtr Parser::parse_dict() {
  auto node = std::make_unique<ItemsNode>(NodeKind::dict, take().line);
  while (!current().is_symbol("}")) {
    if (!node->items.empty()) expect_symbol(",");
    if (current().is_symbol("}")) break;
    node->items.push_back(parse_expression());
    raise(*node, node->items.back()->height);
    expect_symbol(":");
    node->items.push_back(parse_expression());
    raise(*node, node->items.back()->height);
  }
  expect_symbol("}");
  return node;
}

NodePtr Parser::parse_postfix(NodePtr node) {
  while (true) {
    if (current().is_symbol(".") || current().is_symbol("["))
      node = parse_subscript(std::move(node));
    else if (current().is_symbol("("))
      node = parse_call(std::move(node));
    else
      return node;
  }
}

NodePtr Parser::parse_filter_expression(NodePtr node) {
  while (true) {
    if (current().is_symbol("|"))
      node = parse_filter(std::move(node), false);
    else if (current().is_name("is"))
      node = parse_test(std::move(node));
    else if (current().is_symbol("("))
      node = parse_call(std::move(node));
    else
      return node;
  }
}

NodePtr Parser::parse_subscript(NodePtr object) {
  const Token token = take();
  auto item = std::make_unique<ItemNode>(token.line);
  if (token.is_symbol(".")) {
    if (current().kind == TokenKind::name) {
      auto node = std::make_unique<AttributeNode>(token.line);
      node->name = take().text;
      raise(*node, object->height);
      node->object = std::move(object);
      return node;
    }
    if (current().kind != TokenKind::integer) unexpected("a name or a number after '.'");
    item->index = parse_number();
  } else {
    auto tuple = std::make_unique<ItemsNode>(NodeKind::tuple, token.line);
    while (!current().is_symbol("]")) {
      if (!tuple->items.empty()) expect_symbol(",");
      tuple->items.push_back(parse_subscript_item());
      raise(*tuple, tuple->items.back()->height);
    }
    expect_symbol("]");
    item->index = tuple->items.size() == 1 ? std::move(tuple->items.front()) : std::move(tuple);
  }
  item->object = std::move(object);
  raise(*item, std::max(item->object->height, item->index->height));
  return item;
}

NodePtr Parser::parse_subscript_item() {
  auto slice = std::make_unique<SliceNode>(current().line);
  auto at_end = [this] { return current().is_symbol("]") || current().is_symbol(","); };
  if (!current().is_symbol(":")) {
    NodePtr start = parse_expression();
    if (!current().is_symbol(":")) return start;
    slice->start = std::move(start);
  }
  expect_symbol(":");
  if (!current().is_symbol(":") && !at_end()) slice->stop = parse_expression();
  if (skip_symbol(":") && !at_end()) slice->step = parse_expression();
  const std::initializer_list<const Node*> children = {slice->start.get(), slice->stop.get(),
                                                       slice->step.get()};
  return finish(std::move(slice), children);
}

int Parser::parse_arguments(Arguments& arguments) {
  const int line = current().line;
  expect_symbol("(");
  int height = 0;
  auto value = [&] {
    NodePtr node = parse_expression();
    height = std::max(height, node->height);
    return node;
  };
  auto ensure = [&](bool ok) {
    if (!ok) fail_syntax(line, "invalid order of arguments in a call");
  };
  bool comma = false;
  while (!current().is_symbol(")")) {
    if (comma) {
      expect_symbol(",");
      if (current().is_symbol(")")) break;
    }
    if (skip_symbol("*")) {
      ensure(!arguments.star && !arguments.star_star);
      arguments.star = value();
    } else if (skip_symbol("**")) {
      ensure(!arguments.star_star);
      arguments.star_star = value();
    } else if (current().kind == TokenKind::name && look().is_symbol("=")) {
      ensure(!arguments.star_star);
      std::string name = take().text;
      take();
      arguments.named.emplace_back(std::move(name), value());
    } else {
      ensure(!arguments.star && !arguments.star_star && arguments.named.empty());
      arguments.positional.push_back(value());
    }
    comma = true;
  }
  expect_symbol(")");
  return height;
}

NodePtr Parser::parse_call(NodePtr subject) {
  auto node = std::make_unique<CallNode>(NodeKind::call, current().line);
  raise(*node, std::max(parse_arguments(node->arguments), subject->height));
  node->subject = std::move(subject);
  return node;
}

std::string Parser::parse_dotted_name() {
  std::string name = expect_any_name();
  while (skip_symbol(".")) name += "." + expect_any_name();
  return name;
}

NodePtr Parser::parse_filter(NodePtr subject, bool start_inline) {
  while (start_inline || current().is_symbol("|")) {
    if (!start_inline) take();
    start_inline = false;
    auto node = std::make_unique<CallNode>(NodeKind::filter, current().line);
    node->name = parse_dotted_name();
    if (current().is_symbol("(")) raise(*node, parse_arguments(node->arguments));
    if (subject) raise(*node, subject->height);
    node->subject = std::move(subject);
    subject = std::move(node);
  }
  return subject;
}

NodePtr Parser::parse_test(NodePtr subject) {
  auto node = std::make_unique<CallNode>(NodeKind::test, take().line);
  const bool negated = skip_name("not");
  node->name = parse_dotted_name();
  const Token& t = current();
  const bool operand = t.kind == TokenKind::name || t.kind == TokenKind::string ||
                       t.kind == TokenKind::integer || t.kind == TokenKind::real || t.is_symbol("[") ||
                       t.is_symbol("{");
  if (t.is_symbol("(")) {
    raise(*node, parse_arguments(node->arguments));
  } else if (operand && !t.is_name("else") && !t.is_name("or") && !t.is_name("and")) {
    if (t.is_name("is")) fail_syntax(t.line, "tests cannot be chained with 'is'");
    NodePtr argument = parse_postfix(parse_primary());
    raise(*node, argument->height);
    node->arguments.positional.push_back(std::move(argument));
  }
  raise(*node, subject->height);
  node->subject = std::move(subject);
  if (!negated) return node;
  const int line = node->line;
  auto negation = std::make_unique<OneNode>(NodeKind::negation, line, std::move(node));
  raise(*negation, negation->operand->height);
  return negation;
}

}  // namespace millrace::model::jinja
