// The tables of filters, and how arguments meet parameters.
#include <fmt/core.h>

#include <unordered_map>

#include "model/internal/jinja_interpreter.h"

namespace millrace::model::jinja {

Filter find_filter(std::string_view name) {
  static const auto table = [] {
    std::unordered_map<std::string_view, Filter> all;
    for (const auto* rows :
         {&text_filters(), &markup_filters(), &sequence_filters(), &select_filters(), &number_filters()})
      all.insert(rows->begin(), rows->end());
    return all;
  }();
  const auto it = table.find(name);
  return it == table.end() ? nullptr : it->second;
}

Bound::Bound(std::string_view function, Args& args, std::initializer_list<std::string_view> names,
             size_t required)
    : function_(function), names_(names), values_(names.size()), given_(names.size()) {
  if (args.positional.size() > names_.size())
    fail_type(fmt::format("{}() takes at most {} argument(s), got {}", function, names_.size(),
                          args.positional.size()));
  for (size_t i = 0; i < args.positional.size(); ++i) {
    values_[i] = args.positional[i];
    given_[i] = true;
  }
  for (const auto& [name, value] : args.named) {
    size_t i = 0;
    while (i < names_.size() && names_[i] != name) ++i;
    if (i == names_.size())
      fail_type(fmt::format("{}() got an unexpected keyword argument '{}'", function, name));
    if (given_[i]) fail_type(fmt::format("{}() got multiple values for argument '{}'", function, name));
    values_[i] = value;
    given_[i] = true;
  }
  for (size_t i = 0; i < required; ++i)
    if (!given_[i]) fail_type(fmt::format("{}() needs the argument '{}'", function, names_[i]));
}

Int Bound::integer(size_t i, Int otherwise) const {
  return given_[i] ? integer_of(values_[i], fmt::format("{}'s {}", function_, names_[i])) : otherwise;
}
bool Bound::flag(size_t i, bool otherwise) const { return given_[i] ? truth(values_[i]) : otherwise; }
std::string_view Bound::string(size_t i, std::string_view otherwise) const {
  if (!given_[i]) return otherwise;
  if (values_[i].is(Kind::undefined)) fail_undefined(values_[i]);
  if (!values_[i].is(Kind::string))
    fail_type(fmt::format("{}'s {} must be a string, not {}", function_, names_[i], values_[i].type_name()));
  return values_[i].bytes();
}

}  // namespace millrace::model::jinja
