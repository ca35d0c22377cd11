// Carries one planned request through the generator and back to its client, streamed or whole.
//
// Threads: the generator calls the sinks from its own threads; they merge events into the choices' inboxes
// and ask the connection's thread to look. Everything else happens on the connection's thread. A client that
// reads slowly makes events wait merged in the inboxes, so its cost is bounded by the reply itself; a client
// that goes cancels at once.
//
// The status line waits for the first news of the request, so that a refusal which only the group can make
// (context overflow) is still a proper 400; a stream that is queued longer commits to 200 and gets comment
// pings.
#pragma once
#include <memory>

#include "gateway/generator.h"
#include "gateway/http_server.h"
#include "gateway/internal/generation_plan.h"
#include "gateway/internal/http_message.h"
#include "gateway/internal/metrics.h"

namespace millrace::gateway {

// From any thread. Starts every choice, or answers with the refusal of the first that is refused.
void start_generation(std::shared_ptr<Exchange> exchange, GenerationPlan plan,
                      std::shared_ptr<const ServedModel> model, std::shared_ptr<Generator> generator,
                      std::shared_ptr<Metrics> metrics, double ping_interval_s);

}  // namespace millrace::gateway
