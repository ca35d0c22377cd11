// Walks the parsed template over one context. One Interpreter per render, on one thread; it throws
// TemplateError.
//
// jinja_interpreter.cc: statements, scopes, macros. jinja_expression.cc: expressions, calls, look-ups.
// jinja_operators.cc: arithmetic. jinja_filters_*.cc, jinja_tests.cc, jinja_methods_*.cc, jinja_globals.cc:
// the library, each a table from name to function; a new filter is a function and a line in its table.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/internal/jinja_ast.h"
#include "model/internal/jinja_value.h"

namespace millrace::model::jinja {

struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string_view, Value>> variables;  // names live in the tree or are literals

  void set(std::string_view name, Value value);
  const Value* find_here(std::string_view name) const;
};
using ScopePtr = std::shared_ptr<Scope>;

struct InterpreterLimits {
  size_t output_bytes_max;
  int depth_max;
};

class Interpreter {
 public:
  Interpreter(const Template& parsed, std::shared_ptr<DictObject> context, const InterpreterLimits& limits);
  ~Interpreter();  // breaks the cycles that macros and namespaces can form
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Text run();
  int line() const { return line_; }

  // For the library.
  Value call(const Value& callee, Args args);
  Value apply_filter(std::string_view name, const Value& subject, Args args);
  bool apply_test(std::string_view name, const Value& subject, Args args);
  Value attribute(const Value& object, std::string_view name);
  Value item(const Value& object, const Value& key);
  void keep_until_end(std::shared_ptr<HostObject> object) { kept_.push_back(std::move(object)); }

  // For macros and recursive loops.
  Value call_macro(const MacroNode& macro, const ScopePtr& closure, Args args);
  Value block_text(const BlockNode& node);
  Value run_loop_text(const LoopNode& node, const ScopePtr& scope, const Value& iterable, int depth0);

 private:
  enum class Flow { normal, loop_break, loop_continue };
  class Deeper {  // counts nesting while it lives
   public:
    explicit Deeper(Interpreter& interpreter);
    ~Deeper() { --interpreter_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    Interpreter& interpreter_;
  };
  class Enter;    // makes a scope current while it lives
  class Capture;  // collects output while it lives

  Flow run_body(const Body& body);
  Flow run_statement(const Node& node);
  Flow run_branch(const BranchNode& node);
  void run_loop(const LoopNode& node, const Value& iterable, int depth0);
  void run_assign_block(const AssignBlockNode& node);
  void run_call_block(const MacroNode& node);
  void run_with(const WithNode& node);
  void run_block(const BlockNode& node);
  void define_macro(const MacroNode& node);
  void assign(const Target& target, const Value& value);
  void print(const Value& value);
  void emit(std::string_view bytes, bool marked);

  Value eval(const Node& node);
  Value eval_name(const NameNode& node);
  Value eval_items(const ItemsNode& node);
  Value eval_logic(const ChainNode& node);
  Value eval_compare(const ChainNode& node);
  Value eval_arithmetic(const ChainNode& node);
  Value eval_concat(const ItemsNode& node);
  Value eval_item(const ItemNode& node);
  Value eval_call(const CallNode& node);
  Value eval_filter(const Node& node, const Value* block_text);
  Value eval_test(const CallNode& node);
  Args eval_arguments(const Arguments& arguments);
  const Value* find(std::string_view name) const;

  const Template& template_;
  const std::shared_ptr<DictObject> context_;
  const InterpreterLimits limits_;
  ScopePtr root_, scope_;
  Text* out_ = nullptr;
  int depth_ = 0;
  int line_ = 1;
  std::vector<ScopePtr> captured_;                 // scopes that a macro or a recursive loop refers to
  std::vector<std::shared_ptr<HostObject>> kept_;  // namespaces: emptied at the end
};

// The library.
using Filter = Value (*)(Interpreter&, const Value& subject, Args& args);
using Test = bool (*)(Interpreter&, const Value& subject, Args& args);
using Method = Value (*)(Interpreter&, const Value& self, Args& args);
Filter find_filter(std::string_view name);
Test find_test(std::string_view name);
Method find_method(const Value& self, std::string_view name);
std::optional<Value> find_global(std::string_view name);

using FilterRow = std::pair<std::string_view, Filter>;
using MethodRow = std::pair<std::string_view, Method>;
const std::vector<FilterRow>& text_filters();
const std::vector<FilterRow>& markup_filters();
const std::vector<FilterRow>& sequence_filters();
const std::vector<FilterRow>& select_filters();
const std::vector<FilterRow>& number_filters();
Method find_text_method(std::string_view name);
bool modifies_in_place(const Value& self,
                       std::string_view name);  // list.append, dict.update, ...: the sandbox forbids

Value make_namespace(Interpreter& interpreter, Args args);
void namespace_set(const Value& space, std::string_view name,
                   Value value);  // throws if it is not a namespace
Value make_bound_method(const Value& self, std::string_view name, Method method);

Value word_wrap(Interpreter& interpreter, const Value& subject, Args& args);
Value pretty_print(Interpreter& interpreter, const Value& subject, Args& args);
// Follows an attribute path ("a.b.0", or an integer; None: the value itself) as filters' attribute= does.
Value look_up_path(Interpreter& interpreter, Value value, const Value& path, const Value& otherwise);

// Operators.
Value arithmetic(std::string_view op, const Value& a, const Value& b);
Value negate(const Value& v, char op);
bool contains(const Value& container, const Value& item);
bool compare_by(std::string_view op, const Value& a, const Value& b);
Value slice_of(const Value& object, const Value& start, const Value& stop, const Value& step);
Value subscript(const Value& object, const Value& key, bool& found);
Value concat_strings(const Value& a, const Value& b);  // str + str, with markup's escaping
Text escape_html(const Text& text);

// Formatting.
Value percent_format(const Value& format, const Value& values);
Value brace_format(Interpreter& interpreter, const Value& format, Args& args);
std::string format_spec(const Value& value, std::string_view spec);
std::string to_json(const Value& value, bool ensure_ascii, const std::optional<std::string>& indent,
                    std::string_view item_separator, std::string_view key_separator, bool sort_keys);
std::string strftime_now(std::string_view format);

// Arguments by name, as a Python signature binds them. Throws for unknown, double and missing ones.
class Bound {
 public:
  Bound(std::string_view function, Args& args, std::initializer_list<std::string_view> names,
        size_t required = 0);
  bool has(size_t i) const { return given_[i]; }
  const Value& operator[](size_t i) const { return values_[i]; }
  Int integer(size_t i, Int otherwise) const;
  bool flag(size_t i, bool otherwise) const;
  std::string_view string(size_t i, std::string_view otherwise) const;
  bool present(size_t i) const { return given_[i] && !values_[i].is(Kind::none); }

 private:
  std::string_view function_;
  std::vector<std::string_view> names_;
  std::vector<Value> values_;
  std::vector<bool> given_;
};
Int integer_of(const Value& v, std::string_view what);  // an int or bool, else TypeError

}  // namespace millrace::model::jinja
