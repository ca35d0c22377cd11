// Values of the interpreter, with Python's semantics: truth, equality, order, str() and repr().
//
// A value is cheap to copy: scalars inline, the rest shared. Lists, tuples and dicts never change once built
// (a template runs in jinja2's immutable sandbox); only a Namespace does. Containers know how deep they nest,
// so that no template can build one whose destruction or printing would exhaust the stack.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/internal/jinja_lexer.h"
#include "model/internal/jinja_text.h"

namespace millrace::model::jinja {

using Int = __int128;  // wide enough for every 64-bit product; past it arithmetic is refused, not wrapped

inline constexpr int kMaxValueDepth = 100;

// What a render may still spend. One per render; the one that runs on this thread is charged by spend(),
// which every operation that walks or makes values calls, so that no filter can forget to. Without a render
// (parsing) it is free.
struct Meter {
  size_t steps_left = 0;
  size_t steps_max = 0;
  size_t text_bytes_max = 0;  // of one string
};
class MeterScope {
 public:
  explicit MeterScope(Meter& meter);
  ~MeterScope();
  MeterScope(const MeterScope&) = delete;
  MeterScope& operator=(const MeterScope&) = delete;

 private:
  Meter* previous_;
};
void spend(size_t steps);
// A string of so many bytes is about to be made: one step for each 32, and never above text_bytes_max.
void spend_text(Int bytes);
// A string of `size` bytes grows by `more`: charged for the growth, bounded by the sum.
void spend_text_growth(size_t size, size_t more);

enum class Kind : uint8_t {
  undefined,
  none,
  boolean,
  integer,
  real,
  string,
  list,
  tuple,
  dict,
  view,
  range,
  iterator,
  host
};

struct StringObject;
struct ListObject;
struct DictObject;
struct ViewObject;
struct RangeObject;
struct IteratorObject;
class HostObject;

class Value {
 public:
  Value() = default;  // undefined, without a name
  static Value undefined(std::string message);
  static Value none() { return Value(Kind::none); }
  static Value boolean(bool b);
  static Value integer(Int i);
  static Value real(double d);
  static Value string(Text text, bool markup = false);
  static Value string(std::string_view bytes) { return string(Text(std::string(bytes))); }
  static Value list(std::vector<Value> items) { return sequence(Kind::list, std::move(items)); }
  static Value tuple(std::vector<Value> items) { return sequence(Kind::tuple, std::move(items)); }
  static Value group(Value grouper, Value list);  // groupby's named tuple
  static Value dict(std::shared_ptr<DictObject> object);
  static Value view(const Value& dict, int which);  // 0 keys, 1 values, 2 items
  static Value range(int64_t start, int64_t stop, int64_t step);
  static Value iterator(std::vector<Value> items, std::string_view type_name = "generator");
  static Value host(std::shared_ptr<HostObject> object);

  Kind kind() const { return kind_; }
  bool is(Kind k) const { return kind_ == k; }
  bool is_number() const { return kind_ == Kind::boolean || kind_ == Kind::integer || kind_ == Kind::real; }
  bool is_integral() const { return kind_ == Kind::boolean || kind_ == Kind::integer; }

  bool as_bool() const { return scalar_.boolean; }
  Int as_int() const { return kind_ == Kind::boolean ? Int{scalar_.boolean} : scalar_.integer; }
  double as_double() const { return kind_ == Kind::real ? scalar_.real : static_cast<double>(as_int()); }
  const Text& text() const;
  std::string_view bytes() const { return text().bytes(); }
  bool is_markup() const;
  const std::vector<Value>& items() const;  // list and tuple
  const ListObject& list_object() const { return get<ListObject>(); }
  const DictObject& dict() const { return get<DictObject>(); }
  const ViewObject& view() const { return get<ViewObject>(); }
  const RangeObject& range() const { return get<RangeObject>(); }
  IteratorObject& iterator() const { return const_cast<IteratorObject&>(get<IteratorObject>()); }
  HostObject& host() const { return const_cast<HostObject&>(get<HostObject>()); }
  const void* identity() const { return object_.get(); }

  // For an undefined value: what to say when it is used.
  std::string undefined_message() const;

  std::string_view type_name() const;  // Python's: "str", "int", "dict", ...
  int depth() const;                   // 0 for scalars; containers: 1 + the deepest item

 private:
  explicit Value(Kind kind) : kind_(kind) {}
  static Value sequence(Kind kind, std::vector<Value> items);
  template <class T>
  const T& get() const {
    return *static_cast<const T*>(object_.get());
  }

  union Scalar {
    bool boolean;
    Int integer;
    double real;
  } scalar_{.integer = 0};
  std::shared_ptr<void> object_;
  Kind kind_ = Kind::undefined;
};

struct StringObject {
  Text text;
  bool markup = false;  // markupsafe.Markup: made by the escape and safe filters
};

struct ListObject {
  std::vector<Value> items;
  int depth = 1;
  bool group = false;  // groupby's named tuple: has .grouper and .list
};

// Insertion order; keys of mixed types, equal as Python's are (1 == 1.0 == True).
struct DictObject {
  std::vector<std::pair<Value, Value>> items;
  int depth = 1;

  void set(Value key, Value value);  // throws for an unhashable key and for nesting too deep
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  bool erase(std::string_view key);
  void clear();

 private:
  size_t position(const Value& key) const;  // npos if absent
  std::unordered_map<std::string, size_t> strings_;
  std::vector<size_t> others_;  // positions of keys that are not strings
};

struct ViewObject {
  Value dict;
  int which = 0;
};

struct RangeObject {
  int64_t start = 0, stop = 0, step = 1;
  int64_t size() const;
  Int at(int64_t i) const { return Int{start} + Int{i} * step; }
};

struct IteratorObject {
  std::vector<Value> items;
  size_t next = 0;
  std::string_view type_name;
};

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};
class Interpreter;

// What the interpreter lends to templates: functions, bound methods, macros, loop, namespace, cycler, joiner.
class HostObject {
 public:
  virtual ~HostObject() = default;
  virtual std::string_view type_name() const = 0;
  virtual std::optional<Value> attribute(Interpreter&, std::string_view) { return std::nullopt; }
  virtual bool callable() const { return false; }
  virtual Value call(Interpreter& interpreter, Args args);
  virtual std::optional<size_t> length() const { return std::nullopt; }
  virtual const std::vector<Value>* iterate() { return nullptr; }
  virtual std::string repr() const;
  virtual int depth() const {
    return 0;
  }                        // as of containers; 0 where the interpreter breaks the chain at its end
  virtual void clear() {}  // lets go of what it holds
};

[[noreturn]] void fail_type(const std::string& message);   // Python's TypeError, ValueError, ...
[[noreturn]] void fail_undefined(const Value& undefined);  // jinja2's UndefinedError
[[noreturn]] void fail_limit(const std::string& message);  // over a TemplateLimits bound

bool truth(const Value& v);
bool equal(const Value& a, const Value& b);
int compare(const Value& a, const Value& b, std::string_view op);  // <0, 0, >0; throws where Python's < does
bool hashable(const Value& v);

std::string float_repr(double d);
std::string int_text(Int i);
std::optional<Int> parse_int(std::string_view digits, int base);  // no sign, no prefix; nullopt past Int
std::string repr(const Value& v);                                 // Python's repr()
Text to_text(const Value& v);  // Python's str(); marked if a marked string is inside
bool contains_marked(const Value& v);
Value to_string_value(const Value& v);  // str(v), and a string as it is
std::string repr_string(std::string_view bytes);

std::optional<size_t> length_of(const Value& v);            // nullopt: no len()
std::optional<std::vector<Value>> iterate(const Value& v);  // nullopt: not iterable; uses up an iterator
std::vector<Value> items_of(const Value& v);                // iterate, or TypeError

}  // namespace millrace::model::jinja
