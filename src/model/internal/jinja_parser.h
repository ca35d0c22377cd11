// Recursive descent over the tokens, by jinja2's grammar. Expressions are in jinja_parser_expression.cc,
// statements in jinja_parser.cc.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "model/internal/jinja_ast.h"

namespace millrace::model::jinja {

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth) : tokens_(std::move(tokens)), max_depth_(max_depth) {}
  std::unique_ptr<const Template> run();

 private:
  // Counts nesting for as long as it lives.
  class Nest {
   public:
    explicit Nest(Parser& parser);
    ~Nest() { --parser_.depth_; }
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;

   private:
    Parser& parser_;
  };
  using Names = std::initializer_list<std::string_view>;

  const Token& current() const { return tokens_[position_]; }
  const Token& look() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  Token take();
  bool skip_symbol(std::string_view s);
  bool skip_name(std::string_view s);
  void expect_symbol(std::string_view s);
  void expect_name(std::string_view s);
  std::string expect_any_name();
  void expect_block_end();
  [[noreturn]] void unexpected(std::string_view wanted) const;

  // Sets the height from the children's and refuses a tower.
  template <class T>
  std::unique_ptr<T> finish(std::unique_ptr<T> node, std::initializer_list<const Node*> children) const;
  int height_of(const Body& body) const;
  void raise(Node& node, int child_height) const;

  // statements
  Body body_until(Names ends);
  Body block_body(Names ends);
  NodePtr statement();
  NodePtr parse_if();
  NodePtr parse_for();
  NodePtr parse_set();
  NodePtr parse_macro();
  NodePtr parse_call_block();
  NodePtr parse_filter_block();
  NodePtr parse_with();
  NodePtr parse_generation();
  NodePtr parse_autoescape();
  NodePtr parse_block();
  NodePtr parse_print();
  NodePtr parse_refused();
  void parse_signature(MacroNode& macro);
  void parse_macro_body(MacroNode& macro, std::string_view end);
  Target parse_target(Names ends, bool with_namespace);
  Target parse_one_target(bool with_namespace);

  // expressions
  NodePtr parse_tuple(bool with_condition, bool parentheses, Names ends = {});
  NodePtr parse_expression(bool with_condition = true);
  NodePtr parse_condition();
  NodePtr parse_logic(std::string_view word);
  NodePtr parse_not();
  NodePtr parse_compare();
  NodePtr parse_chain(Names symbols, NodePtr (Parser::*operand)());
  NodePtr parse_sum();
  NodePtr parse_concat();
  NodePtr parse_product();
  NodePtr parse_power();
  NodePtr parse_unary() { return parse_unary(true); }
  NodePtr parse_unary(bool with_filter);
  NodePtr parse_primary();
  NodePtr parse_list();
  NodePtr parse_dict();
  NodePtr parse_number();
  NodePtr parse_postfix(NodePtr node);
  NodePtr parse_filter_expression(NodePtr node);
  NodePtr parse_subscript(NodePtr node);
  NodePtr parse_subscript_item();
  NodePtr parse_call(NodePtr node);
  NodePtr parse_filter(NodePtr node, bool start_inline);
  NodePtr parse_test(NodePtr node);
  int parse_arguments(Arguments& arguments);  // the height of the highest
  std::string parse_dotted_name();
  bool at_tuple_end(Names ends) const;

  std::vector<Token> tokens_;
  size_t position_ = 0;
  const int max_depth_;
  int depth_ = 0;
  int loops_ = 0;  // enclosing for blocks, for break and continue
  std::vector<std::pair<std::string, const BlockNode*>> blocks_;
  // Whether the macro being parsed names varargs, kwargs or caller; one entry per open macro.
  struct Special {
    bool varargs = false, kwargs = false, caller = false;
  };
  std::vector<Special> specials_;
};

}  // namespace millrace::model::jinja
