// How a chat template tells the tool calls of earlier turns. Clients send a call's arguments as JSON text
// and, beside calls, no content (OpenAI's API). The families' templates differ: some write the text as it is,
// others want the object that it holds; some fail where content is null, others leave the calls out where it
// is not. Pure.
#pragma once
#include <boost/json/fwd.hpp>

#include "model/chat_template.h"

namespace millrace::gateway {

struct CallHistory {
  bool object_arguments = false;  // arguments as objects, not as text
  bool null_content = false;      // no content is null, not ""
};

// By telling a call in each way: the first that shows its arguments. Text comes first, since it keeps the
// model's own bytes, and with them the cached context of its reply; and "" before null, which some templates
// would write as a word.
CallHistory call_history_of(const model::ChatTemplate& chat_template);

// Messages with tool calls as the template wants them. Where that is objects, blank text is an empty one;
// other text that holds no object stays as it is.
void fit_call_history(const CallHistory& history, boost::json::array& messages);

}  // namespace millrace::gateway
