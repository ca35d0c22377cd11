#include "model/internal/jinja_parser.h"

#include <fmt/core.h>

#include <algorithm>

namespace millrace::model::jinja {

Parser::Nest::Nest(Parser& parser) : parser_(parser) {
  if (++parser.depth_ > parser.max_depth_) {
    --parser.depth_;
    throw TemplateError(Code::resource_exhausted, parser.current().line,
                        fmt::format("nested deeper than the limit of {}", parser.max_depth_));
  }
}

Token Parser::take() {
  Token token = tokens_[position_];
  if (position_ + 1 < tokens_.size()) ++position_;
  return token;
}

bool Parser::skip_symbol(std::string_view s) {
  if (!current().is_symbol(s)) return false;
  take();
  return true;
}
bool Parser::skip_name(std::string_view s) {
  if (!current().is_name(s)) return false;
  take();
  return true;
}
void Parser::expect_symbol(std::string_view s) {
  if (!skip_symbol(s)) unexpected(fmt::format("'{}'", s));
}
void Parser::expect_name(std::string_view s) {
  if (!skip_name(s)) unexpected(fmt::format("'{}'", s));
}
std::string Parser::expect_any_name() {
  if (current().kind != TokenKind::name) unexpected("a name");
  return take().text;
}
void Parser::expect_block_end() {
  if (current().kind != TokenKind::block_end) unexpected("'%}'");
  take();
}
void Parser::unexpected(std::string_view wanted) const {
  fail_syntax(current().line, fmt::format("expected {}, found {}", wanted, describe(current())));
}

int Parser::height_of(const Body& body) const {
  int height = 0;
  for (const NodePtr& node : body) height = std::max(height, node->height);
  return height;
}

std::unique_ptr<const Template> Parser::run() {
  auto parsed = std::make_unique<Template>();
  parsed->body = body_until({});
  parsed->blocks = std::move(blocks_);
  return parsed;
}

// Parses text and tags up to one of the end tags, whose name is then the current token; without ends, to the
// end.
Body Parser::body_until(Names ends) {
  const Nest nest(*this);
  Body body;
  while (current().kind != TokenKind::end) {
    const int line = current().line;
    if (current().kind == TokenKind::data) {
      body.push_back(std::make_unique<DataNode>(line, take().text));
      continue;
    }
    if (take().kind == TokenKind::variable_begin) {
      auto node = std::make_unique<PrintNode>(line, parse_tuple(true, false));
      raise(*node, node->expression->height);
      body.push_back(std::move(node));
      if (current().kind != TokenKind::variable_end) unexpected("'}}'");
      take();
      continue;
    }
    for (const std::string_view end : ends)
      if (current().is_name(end)) return body;
    body.push_back(statement());
    expect_block_end();
  }
  if (ends.size() > 0) unexpected(fmt::format("'{{% {} %}}'", *(ends.end() - 1)));
  return body;
}

// A body that follows its tag's expression: an optional colon, "%}", then text up to an end tag.
Body Parser::block_body(Names ends) {
  skip_symbol(":");
  expect_block_end();
  return body_until(ends);
}

NodePtr Parser::statement() {
  if (current().kind != TokenKind::name) unexpected("the name of a tag");
  const Nest nest(*this);
  const std::string& tag = current().text;
  const int line = current().line;
  if (tag == "if") return parse_if();
  if (tag == "for") return parse_for();
  if (tag == "set") return parse_set();
  if (tag == "macro") return parse_macro();
  if (tag == "call") return parse_call_block();
  if (tag == "filter") return parse_filter_block();
  if (tag == "with") return parse_with();
  if (tag == "print") return parse_print();
  if (tag == "block") return parse_block();
  if (tag == "autoescape") return parse_autoescape();
  if (tag == "generation") return parse_generation();
  if (tag == "include" || tag == "import" || tag == "from" || tag == "extends") return parse_refused();
  if (tag == "break" || tag == "continue") {
    if (loops_ == 0) fail_syntax(line, fmt::format("'{}' outside a loop", tag));
    return std::make_unique<Node>(take().text == "break" ? NodeKind::loop_break : NodeKind::loop_continue,
                                  line);
  }
  fail_syntax(line, fmt::format("unknown tag '{}'", tag));
}

NodePtr Parser::parse_if() {
  auto node = std::make_unique<BranchNode>(current().line);
  do {
    take();  // if or elif
    NodePtr test = parse_tuple(false, false);
    Body body = block_body({"elif", "else", "endif"});
    raise(*node, std::max(test->height, height_of(body)));
    node->branches.emplace_back(std::move(test), std::move(body));
  } while (current().is_name("elif"));
  if (skip_name("else")) {
    node->otherwise = block_body({"endif"});
    raise(*node, height_of(node->otherwise));
  }
  expect_name("endif");
  return node;
}

NodePtr Parser::parse_for() {
  auto node = std::make_unique<LoopNode>(take().line);
  node->target = parse_target({"in"}, false);
  expect_name("in");
  node->iterable = parse_tuple(false, false, {"recursive"});
  raise(*node, node->iterable->height);
  if (skip_name("if")) {
    node->condition = parse_expression();
    raise(*node, node->condition->height);
  }
  node->recursive = skip_name("recursive");
  ++loops_;
  node->body = block_body({"else", "endfor"});
  --loops_;
  raise(*node, height_of(node->body));
  if (skip_name("else")) {
    node->otherwise = block_body({"endfor"});
    raise(*node, height_of(node->otherwise));
  }
  expect_name("endfor");
  return node;
}

Target Parser::parse_one_target(bool with_namespace) {
  const Nest nest(*this);
  if (skip_symbol("(")) {
    Target tuple = parse_target({}, false);
    expect_symbol(")");
    return tuple;
  }
  const int line = current().line;
  Target target;
  target.name = expect_any_name();
  for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"})
    if (target.name == constant) fail_syntax(line, fmt::format("cannot assign to '{}'", constant));
  if (with_namespace && skip_symbol(".")) target.attribute = expect_any_name();
  return target;
}

Target Parser::parse_target(Names ends, bool with_namespace) {
  Target tuple;
  tuple.is_tuple = true;
  bool comma = false;
  while (!at_tuple_end(ends)) {
    tuple.parts.push_back(parse_one_target(with_namespace));
    if (!skip_symbol(",")) break;
    comma = true;
  }
  if (tuple.parts.empty()) unexpected("a name to assign to");
  return comma ? std::move(tuple) : Target(std::move(tuple.parts.front()));
}

NodePtr Parser::parse_set() {
  const int line = take().line;
  Target target = parse_target({}, true);
  if (skip_symbol("=")) {
    auto node = std::make_unique<AssignNode>(line);
    node->target = std::move(target);
    node->value = parse_tuple(true, false);
    raise(*node, node->value->height);
    return node;
  }
  auto node = std::make_unique<AssignBlockNode>(line);
  node->target = std::move(target);
  node->filter = parse_filter(nullptr, false);
  if (node->filter) raise(*node, node->filter->height);
  node->body = block_body({"endset"});
  raise(*node, height_of(node->body));
  take();
  return node;
}

void Parser::parse_signature(MacroNode& macro) {
  expect_symbol("(");
  while (!current().is_symbol(")")) {
    if (!macro.parameters.empty()) expect_symbol(",");
    macro.parameters.push_back(expect_any_name());
    if (skip_symbol("=")) {
      macro.defaults.push_back(parse_expression());
      raise(macro, macro.defaults.back()->height);
    } else if (!macro.defaults.empty()) {
      fail_syntax(current().line, "a parameter without a default follows one with a default");
    }
  }
  expect_symbol(")");
}

namespace {

// Loops outside a macro's body are not loops to its break and continue.
struct OutsideLoops {
  explicit OutsideLoops(int& count) : count_(count), saved_(count) { count = 0; }
  ~OutsideLoops() { count_ = saved_; }
  OutsideLoops(const OutsideLoops&) = delete;
  OutsideLoops& operator=(const OutsideLoops&) = delete;
  int& count_;
  int saved_;
};

}  // namespace

void Parser::parse_macro_body(MacroNode& macro, std::string_view end) {
  const OutsideLoops outside(loops_);
  specials_.emplace_back();
  macro.body = block_body({end});
  const Special special = specials_.back();
  specials_.pop_back();
  if (!specials_.empty()) {  // a macro inside a macro asks on behalf of both
    specials_.back().varargs |= special.varargs;
    specials_.back().kwargs |= special.kwargs;
    specials_.back().caller |= special.caller;
  }
  macro.uses_varargs = special.varargs;
  macro.uses_kwargs = special.kwargs;
  macro.uses_caller = special.caller;
}

NodePtr Parser::parse_macro() {
  auto node = std::make_unique<MacroNode>(NodeKind::macro, take().line);
  node->name = expect_any_name();
  parse_signature(*node);
  parse_macro_body(*node, "endmacro");
  raise(*node, height_of(node->body));
  take();
  return node;
}

NodePtr Parser::parse_call_block() {
  auto node = std::make_unique<MacroNode>(NodeKind::call_block, take().line);
  if (current().is_symbol("(")) parse_signature(*node);
  node->call = parse_expression();
  if (node->call->kind != NodeKind::call) fail_syntax(node->line, "'call' needs a call");
  parse_macro_body(*node, "endcall");
  raise(*node, std::max(node->call->height, height_of(node->body)));
  take();
  return node;
}

NodePtr Parser::parse_filter_block() {
  auto node = std::make_unique<FilterBlockNode>(take().line);
  node->filter = parse_filter(nullptr, true);
  node->body = block_body({"endfilter"});
  raise(*node, std::max(node->filter->height, height_of(node->body)));
  take();
  return node;
}

NodePtr Parser::parse_with() {
  auto node = std::make_unique<WithNode>(NodeKind::with, take().line);
  while (current().kind != TokenKind::block_end) {
    if (!node->bindings.empty()) expect_symbol(",");
    Target target = parse_target({}, false);
    expect_symbol("=");
    NodePtr value = parse_expression();
    raise(*node, value->height);
    node->bindings.emplace_back(std::move(target), std::move(value));
  }
  node->body = block_body({"endwith"});
  raise(*node, height_of(node->body));
  take();
  return node;
}

// transformers' tag around what the model wrote, for training masks; to a prompt it is only a scope.
NodePtr Parser::parse_generation() {
  auto node = std::make_unique<WithNode>(NodeKind::scope, take().line);
  const OutsideLoops outside(loops_);
  node->body = block_body({"endgeneration"});
  raise(*node, height_of(node->body));
  take();
  return node;
}

NodePtr Parser::parse_autoescape() {
  auto node = std::make_unique<WithNode>(NodeKind::scope, take().line);
  const int line = current().line;
  const NodePtr flag = parse_expression();
  if (flag->kind != NodeKind::constant || truth(static_cast<const ConstantNode&>(*flag).value))
    fail_syntax(line, "autoescape is supported only as 'autoescape false': prompts are not HTML");
  node->body = block_body({"endautoescape"});
  raise(*node, height_of(node->body));
  take();
  return node;
}

NodePtr Parser::parse_block() {
  auto node = std::make_unique<BlockNode>(take().line);
  node->name = expect_any_name();
  node->scoped = skip_name("scoped");
  if (skip_name("required"))
    fail_syntax(node->line, "a required block needs a template that extends this one");
  for (const auto& [name, block] : blocks_)
    if (name == node->name) fail_syntax(node->line, fmt::format("block '{}' is defined twice", name));
  blocks_.emplace_back(node->name, node.get());
  const OutsideLoops outside(loops_);
  node->body = block_body({"endblock"});
  raise(*node, height_of(node->body));
  take();
  skip_name(node->name);
  return node;
}

NodePtr Parser::parse_print() {
  const int line = take().line;
  auto parts = std::make_unique<ItemsNode>(NodeKind::concat, line);
  while (current().kind != TokenKind::block_end) {
    if (!parts->items.empty()) expect_symbol(",");
    parts->items.push_back(parse_expression());
    raise(*parts, parts->items.back()->height);
  }
  auto print = std::make_unique<PrintNode>(line, std::move(parts));
  raise(*print, print->expression->height);
  return print;
}

NodePtr Parser::parse_refused() {
  auto node = std::make_unique<RefusedNode>(current().line, current().text);
  while (current().kind != TokenKind::block_end && current().kind != TokenKind::end) take();
  return node;
}

std::unique_ptr<const Template> parse_template(std::string_view source, int max_depth) {
  return Parser(tokenize(source), max_depth).run();
}

}  // namespace millrace::model::jinja
