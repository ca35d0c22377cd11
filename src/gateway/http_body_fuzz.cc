// Bodies of requests: JSON, validation, template, tokens. Whatever is accepted must be a request that the
// engine accepts. The first byte chooses the endpoint.
#include <boost/json.hpp>
#include <cstdint>

#include "engine/prompt.h"
#include "gateway/internal/api_error.h"
#include "gateway/internal/fake_generator.h"
#include "gateway/internal/generation_plan.h"

namespace {

using namespace millrace;
using namespace millrace::gateway;

void check_plan(const Expected<GenerationPlan>& plan, const ServedModel& model) {
  if (!plan) {
    const Status& status = plan.error();
    const int http = http_status(status);
    MR_CHECK(http == 400 || http == 404, "a bad body is the client's fault, not " + status.to_string());
    MR_CHECK(parse_json(error_body(status)).has_value(), "an error is valid JSON");
    return;
  }
  MR_CHECK(!plan->requests.empty() && plan->requests.size() <= kMaxRequestChoices, "choices are bounded");
  for (const engine::GenerateRequest& request : plan->requests) {
    const auto valid = engine::validate_request(request, model.tokenizer->vocab_size());
    MR_CHECK(valid.has_value(), "the engine refuses what was accepted: " + valid.error().message);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ServedModel model = fake_served_model(100);
  if (size == 0) return 0;
  const auto body = parse_json({reinterpret_cast<const char*>(data) + 1, size - 1});
  if (!body) return 0;
  switch (data[0] % 3) {
    case 0:
      check_plan(plan_chat(*body, model), model);
      break;
    case 1:
      check_plan(plan_completion(*body, model), model);
      break;
    default:
      if (const auto request = plan_tokenize(*body, model))
        (void)engine::encode_prompt(*model.tokenizer, request->prompt, 1000);
  }
  return 0;
}
