// The parsed template. Nodes are plain structs with a kind; the interpreter switches on it. A node's height
// (1 + the highest child) is bounded by the parser, so walking and destroying the tree cannot exhaust the
// stack: runs of the same operator are one node with many operands, not a leaning tower.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/internal/jinja_value.h"

namespace millrace::model::jinja {

enum class NodeKind : uint8_t {
  // expressions
  constant,
  name,
  list,
  tuple,
  dict,
  condition,
  logic,
  negation,
  compare,
  arithmetic,
  concat,
  unary,
  attribute,
  item,
  slice,
  call,
  filter,
  test,
  // statements
  data,
  print,
  branch,
  loop,
  loop_break,
  loop_continue,
  assign,
  assign_block,
  macro,
  call_block,
  filter_block,
  with,
  scope,
  block,
  refused,
};

struct Node {
  Node(NodeKind k, int at_line) : kind(k), line(at_line) {}
  virtual ~Node() = default;
  NodeKind kind;
  int line;
  int height = 1;
};
using NodePtr = std::unique_ptr<Node>;
using Body = std::vector<NodePtr>;

// Of an expression that may be assigned to: a name, ns.attribute, or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;      // not empty: name.attribute of a namespace
  std::vector<Target> parts;  // not empty or `is_tuple`: unpacking
  bool is_tuple = false;
};

struct ConstantNode : Node {
  ConstantNode(int at, Value v) : Node(NodeKind::constant, at), value(std::move(v)) {}
  Value value;
};
struct NameNode : Node {
  NameNode(int at, std::string n) : Node(NodeKind::name, at), name(std::move(n)) {}
  std::string name;
};
struct ItemsNode : Node {  // list, tuple, concat, and dict (key, value, key, value, ...)
  using Node::Node;
  Body items;
};
struct ConditionNode : Node {  // a if test else b
  explicit ConditionNode(int at) : Node(NodeKind::condition, at) {}
  NodePtr test, then, otherwise;  // otherwise may be null
};
struct ChainNode : Node {  // logic, compare, arithmetic: operands[0] ops[0] operands[1] ...
  using Node::Node;
  Body operands;
  std::vector<std::string> ops;
};
struct OneNode : Node {  // negation (not), unary (op is '+' or '-')
  OneNode(NodeKind k, int at, NodePtr o, char c = 0) : Node(k, at), operand(std::move(o)), op(c) {}
  NodePtr operand;
  char op;
};
struct AttributeNode : Node {
  explicit AttributeNode(int at) : Node(NodeKind::attribute, at) {}
  NodePtr object;
  std::string name;
};
struct ItemNode : Node {
  explicit ItemNode(int at) : Node(NodeKind::item, at) {}
  NodePtr object, index;
};
struct SliceNode : Node {
  explicit SliceNode(int at) : Node(NodeKind::slice, at) {}
  NodePtr start, stop, step;  // each may be null
};
struct Arguments {
  Body positional;
  std::vector<std::pair<std::string, NodePtr>> named;
  NodePtr star, star_star;
};
struct CallNode : Node {  // call, filter, test
  using Node::Node;
  NodePtr subject;   // what is called, filtered (null: the block's text) or tested
  std::string name;  // of a filter or test
  Arguments arguments;
};

struct DataNode : Node {
  DataNode(int at, std::string t) : Node(NodeKind::data, at), text(std::move(t)) {}
  std::string text;
};
struct PrintNode : Node {
  PrintNode(int at, NodePtr e) : Node(NodeKind::print, at), expression(std::move(e)) {}
  NodePtr expression;
};
struct BranchNode : Node {
  explicit BranchNode(int at) : Node(NodeKind::branch, at) {}
  std::vector<std::pair<NodePtr, Body>> branches;
  Body otherwise;
};
struct LoopNode : Node {
  explicit LoopNode(int at) : Node(NodeKind::loop, at) {}
  Target target;
  NodePtr iterable, condition;
  bool recursive = false;
  Body body, otherwise;
};
struct AssignNode : Node {
  explicit AssignNode(int at) : Node(NodeKind::assign, at) {}
  Target target;
  NodePtr value;
};
struct AssignBlockNode : Node {
  explicit AssignBlockNode(int at) : Node(NodeKind::assign_block, at) {}
  Target target;
  NodePtr filter;  // null, or a chain of filters over the block's text
  Body body;
};
struct MacroNode : Node {  // macro and call_block
  using Node::Node;
  std::string name;
  std::vector<std::string> parameters;
  Body defaults;  // of the last parameters
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
  NodePtr call;  // of a call block
  Body body;
};
struct FilterBlockNode : Node {
  explicit FilterBlockNode(int at) : Node(NodeKind::filter_block, at) {}
  NodePtr filter;
  Body body;
};
struct WithNode : Node {  // with, scope
  using Node::Node;
  std::vector<std::pair<Target, NodePtr>> bindings;
  Body body;
};
struct BlockNode : Node {
  explicit BlockNode(int at) : Node(NodeKind::block, at) {}
  std::string name;
  bool scoped = false;
  Body body;
};
struct RefusedNode : Node {  // include, import, from, extends: needs a second template
  RefusedNode(int at, std::string t) : Node(NodeKind::refused, at), tag(std::move(t)) {}
  std::string tag;
};

struct Template {
  Body body;
  std::vector<std::pair<std::string, const BlockNode*>> blocks;
};

// Throws TemplateError. max_depth bounds nesting.
std::unique_ptr<const Template> parse_template(std::string_view source, int max_depth);

}  // namespace millrace::model::jinja
