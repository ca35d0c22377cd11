#include "gateway/internal/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>
#include <mutex>
#include <sstream>

#include "gateway/boot_total.h"

namespace millrace::gateway {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;
using Labels = std::map<std::string, std::string>;

const Buckets kLatencyBuckets = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                 2.5,   5,    10,    20,   40,  80,   160, 640};
const Buckets kTokenBuckets = {0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05,
                               0.075, 0.1,    0.15,  0.25, 0.5,   1,     2.5};
const Buckets kCountBuckets = {1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144};

const char* finish_text(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::stop:
      return "stop";
    case engine::FinishReason::length:
      return "length";
    case engine::FinishReason::cancelled:
      return "abort";  // vLLM's word
    default:
      return "error";
  }
}

// The same series under one or two names.
template <class T>
struct Both {
  T* ours = nullptr;
  T* vllm = nullptr;
  template <class F>
  void each(F&& f) const {
    if (ours) f(*ours);
    if (vllm) f(*vllm);
  }
};

template <class T, class Builder>
prometheus::Family<T>* family(prometheus::Registry& registry, Builder builder, const char* name,
                              const char* help) {
  return &builder.Name(name).Help(help).Register(registry);
}

class PrometheusMetrics final : public Metrics {
 public:
  PrometheusMetrics(std::string model_name, bool vllm_names)
      : model_name_(std::move(model_name)), vllm_(vllm_names) {
    register_http();
    register_tokens();
    register_latencies();
    register_groups();
  }

  void http_request(std::string_view route, std::string_view method, int status) override {
    http_requests_
        ->Add({{"route", std::string(route)},
               {"method", std::string(method)},
               {"status", std::to_string(status)}})
        .Increment();
  }
  void http_refusal(const char* reason) override { http_refusals_->Add({{"reason", reason}}).Increment(); }
  void http_connections(int change) override { connections_->Increment(change); }
  void generation_refused(Code code) override {
    generation_refusals_->Add({{"code", std::string(code_name(code))}}).Increment();
  }
  void generation_in_flight(int change) override { in_flight_->Increment(change); }

  void first_token(double seconds) override {
    ttft_.each([&](Histogram& h) { h.Observe(seconds); });
  }
  void next_tokens(double seconds, size_t count) override {
    for (size_t i = 0; i < count; ++i) {
      itl_.each([&](Histogram& h) { h.Observe(seconds / static_cast<double>(count)); });
      tpot_.each([&](Histogram& h) { h.Observe(seconds / static_cast<double>(count)); });
    }
  }

  void finished(const FinishedRequest& r) override {
    const auto count = [](const Both<Counter>& counter, int64_t n) {
      if (n > 0) counter.each([&](Counter& c) { c.Increment(static_cast<double>(n)); });
    };
    const auto observe = [](const Both<Histogram>& histogram, double value) {
      if (value >= 0) histogram.each([&](Histogram& h) { h.Observe(value); });
    };
    count(prompt_tokens_, r.prompt_tokens);
    count(cache_queries_, r.prompt_tokens);
    count(cache_hits_, r.cached_tokens);
    count(generation_tokens_, r.generated_tokens);
    const std::string reason(finish_text(r.reason));
    success_->Add({{"model_name", model_name_}, {"finished_reason", reason}}).Increment();
    const bool success = r.reason == engine::FinishReason::stop || r.reason == engine::FinishReason::length;
    if (vllm_success_ && success)
      vllm_success_->Add({{"model_name", model_name_}, {"finished_reason", reason}}).Increment();
    if (!success) return;
    observe(queue_, r.queue_s);
    observe(prefill_, r.prefill_s);
    observe(decode_, r.decode_s);
    observe(e2e_, r.e2e_s);
    observe(prompt_size_, static_cast<double>(r.prompt_tokens));
    observe(generation_size_, static_cast<double>(r.generated_tokens));
  }

  std::string text(const Generator& generator) override {
    read_groups(generator);
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, registry_.Collect());
    return std::move(out).str();
  }

 private:
  void register_http() {
    http_requests_ = family<Counter>(registry_, prometheus::BuildCounter(), "millrace_http_requests_total",
                                     "HTTP requests answered, by route, method and status");
    http_refusals_ =
        family<Counter>(registry_, prometheus::BuildCounter(), "millrace_http_refusals_total",
                        "Connections and requests refused or dropped by the HTTP front, by reason");
    generation_refusals_ =
        family<Counter>(registry_, prometheus::BuildCounter(), "millrace_generation_refusals_total",
                        "Requests that no group took, by status code");
    connections_ = gauge("millrace_http_connections", "", "Open client connections").ours;
    in_flight_ =
        gauge("millrace_generations_in_flight", "", "Choices being generated, seen from the gateway").ours;
  }

  void register_tokens() {
    prompt_tokens_ =
        counter("millrace_prompt_tokens_total", "vllm:prompt_tokens_total", "Prompt tokens processed");
    generation_tokens_ =
        counter("millrace_generation_tokens_total", "vllm:generation_tokens_total", "Tokens generated");
    cache_queries_ = counter("millrace_prefix_cache_queries_total", "vllm:prefix_cache_queries_total",
                             "Prompt tokens looked up in the prefix cache");
    cache_hits_ = counter("millrace_prefix_cache_hits_total", "vllm:prefix_cache_hits_total",
                          "Prompt tokens found in the prefix cache");
    preemptions_ = counter("millrace_preemptions_total", "vllm:num_preemptions_total",
                           "Sequences that lost their pages for a while");
    drafts_ = counter("millrace_spec_decode_drafts_total", "vllm:spec_decode_num_drafts_total",
                      "Times that a sequence's next tokens were guessed (MTP)");
    draft_tokens_ = counter("millrace_spec_decode_draft_tokens_total",
                            "vllm:spec_decode_num_draft_tokens_total", "Tokens guessed");
    accepted_tokens_ =
        counter("millrace_spec_decode_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total",
                "Tokens guessed right, which saved a step");
    accepted_by_place_ = family<Counter>(registry_, prometheus::BuildCounter(),
                                         "millrace_spec_decode_accepted_tokens_by_position_total",
                                         "Tokens guessed right, by place after the last token");
    if (vllm_)
      vllm_accepted_by_place_ = family<Counter>(registry_, prometheus::BuildCounter(),
                                                "vllm:spec_decode_num_accepted_tokens_per_pos_total",
                                                "Tokens guessed right, by place after the last token");
    running_ =
        gauge("millrace_requests_running", "vllm:num_requests_running", "Sequences in the running batch");
    waiting_ = gauge("millrace_requests_waiting", "vllm:num_requests_waiting", "Sequences waiting for room");
    kv_usage_ = gauge("millrace_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc",
                      "Part of the KV pages in use, 0 to 1 (mean over groups)");
  }

  void register_latencies() {
    ttft_ = histogram("millrace_time_to_first_token_seconds", "vllm:time_to_first_token_seconds",
                      "From the request's header to its first token", kLatencyBuckets);
    itl_ = histogram("millrace_inter_token_latency_seconds", "vllm:inter_token_latency_seconds",
                     "Between consecutive tokens of a choice", kTokenBuckets);
    tpot_ = histogram("", "vllm:time_per_output_token_seconds", "Old name of inter_token_latency_seconds",
                      kTokenBuckets);
    e2e_ = histogram("millrace_e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds",
                     "From the request's header to the end of a choice", kLatencyBuckets);
    queue_ = histogram("millrace_request_queue_time_seconds", "vllm:request_queue_time_seconds",
                       "Waiting for a group, and in its queue until the first step that computes the request",
                       kLatencyBuckets);
    prefill_ = histogram("millrace_request_prefill_time_seconds", "vllm:request_prefill_time_seconds",
                         "From there to the first token", kLatencyBuckets);
    decode_ = histogram("millrace_request_decode_time_seconds", "vllm:request_decode_time_seconds",
                        "From the first token to the last", kLatencyBuckets);
    prompt_size_ = histogram("millrace_request_prompt_tokens", "vllm:request_prompt_tokens",
                             "Prompt tokens of a request", kCountBuckets);
    generation_size_ = histogram("millrace_request_generation_tokens", "vllm:request_generation_tokens",
                                 "Tokens generated for a choice", kCountBuckets);
    success_ = family<Counter>(registry_, prometheus::BuildCounter(), "millrace_request_finished_total",
                               "Choices finished, by reason");
    if (vllm_)
      vllm_success_ = family<Counter>(registry_, prometheus::BuildCounter(), "vllm:request_success_total",
                                      "Choices finished, by reason");
  }

  void register_groups() {
    group_up_ = family<Gauge>(registry_, prometheus::BuildGauge(), "millrace_group_up",
                              "1 if the group is connected and progressing");
    group_restarts_ = family<Gauge>(registry_, prometheus::BuildGauge(), "millrace_group_restarts",
                                    "Times the group was started again");
    group_steps_ = family<Gauge>(registry_, prometheus::BuildGauge(), "millrace_group_steps",
                                 "Steps the group has finished since start");
    group_running_ = family<Gauge>(registry_, prometheus::BuildGauge(), "millrace_group_running",
                                   "Sequences running in the group");
    group_waiting_ = family<Gauge>(registry_, prometheus::BuildGauge(), "millrace_group_waiting",
                                   "Sequences waiting in the group");
    group_kv_free_ = family<Gauge>(registry_, prometheus::BuildGauge(), "millrace_group_kv_pages_free",
                                   "KV pages free in the group");
    group_kv_total_ = family<Gauge>(registry_, prometheus::BuildGauge(), "millrace_group_kv_pages",
                                    "KV pages of the group");
    expert_imbalance_ =
        family<Gauge>(registry_, prometheus::BuildGauge(), "millrace_expert_imbalance",
                      "Rows of a layer's busiest expert over the mean of its experts, since "
                      "the group's start, by layer. In the last layer only rows that go on to "
                      "the head count");
    expert_rows_ = family<Counter>(registry_, prometheus::BuildCounter(), "millrace_expert_rows_total",
                                   "Rows computed by a layer's experts, once for each expert that a row "
                                   "picked, by layer. In the last layer "
                                   "only rows that go on to the head count");
    expert_busiest_rows_ = family<Counter>(
        registry_, prometheus::BuildCounter(), "millrace_expert_busiest_rows_total",
        "Of millrace_expert_rows_total, those of the expert that has computed most since the group's start");
  }

  template <class T, class Builder, class... Args>
  Both<T> both(const Builder& builder, const char* ours, const char* vllm, const char* help,
               const Args&... args) {
    const Labels labels = {{"model_name", model_name_}};
    Both<T> result;
    if (*ours) result.ours = &family<T>(registry_, builder, ours, help)->Add(labels, args...);
    if (*vllm && vllm_) result.vllm = &family<T>(registry_, builder, vllm, help)->Add(labels, args...);
    return result;
  }
  Both<Counter> counter(const char* ours, const char* vllm, const char* help) {
    return both<Counter>(prometheus::BuildCounter(), ours, vllm, help);
  }
  Both<Gauge> gauge(const char* ours, const char* vllm, const char* help) {
    return both<Gauge>(prometheus::BuildGauge(), ours, vllm, help);
  }
  Both<Histogram> histogram(const char* ours, const char* vllm, const char* help, const Buckets& buckets) {
    return both<Histogram>(prometheus::BuildHistogram(), ours, vllm, help, buckets);
  }

  // A group's totals when they were last read: they start again from 0 when the group does, and our sums must
  // not.
  struct Seen {
    BootTotal preemptions;
    std::map<int, std::pair<BootTotal, BootTotal>> expert_rows;  // by layer: all, the busiest expert's
    std::map<size_t, std::pair<BootTotal, BootTotal>> drafts;    // by place: proposed, accepted
  };
  static double grown(const GroupStatus& group, BootTotal& seen, uint64_t total) {
    return static_cast<double>(seen.grown(group.boot_id, total));
  }

  void read_groups(const Generator& generator) {
    const std::lock_guard lock(mutex_);
    double running = 0, waiting = 0, usage = 0, with_pages = 0;
    for (const GroupStatus& group : generator.groups()) {
      const Labels labels = {{"group", std::to_string(group.id.value)}};
      Seen& seen = seen_[group.id.value];
      group_up_->Add(labels).Set(group.connected && group.progressing ? 1 : 0);
      group_restarts_->Add(labels).Set(static_cast<double>(group.restarts));
      group_steps_->Add(labels).Set(static_cast<double>(group.load.steps));
      group_running_->Add(labels).Set(group.load.running);
      group_waiting_->Add(labels).Set(group.load.waiting);
      group_kv_free_->Add(labels).Set(static_cast<double>(group.load.kv_pages_free));
      group_kv_total_->Add(labels).Set(static_cast<double>(group.load.kv_pages_total));
      for (const auto& mixture : group.load.experts) {
        Labels by_layer = labels;
        by_layer["layer"] = std::to_string(mixture.layer);
        expert_imbalance_->Add(by_layer).Set(static_cast<double>(mixture.imbalance));
        auto& [rows, busiest_rows] = seen.expert_rows[mixture.layer];
        expert_rows_->Add(by_layer).Increment(grown(group, rows, mixture.rows));
        expert_busiest_rows_->Add(by_layer).Increment(grown(group, busiest_rows, mixture.busiest_rows));
      }
      read_drafts(group, seen);
      const double preemptions = grown(group, seen.preemptions, group.load.preemptions);
      preemptions_.each([&](Counter& c) { c.Increment(preemptions); });
      if (!group.connected) continue;
      running += group.load.running;
      waiting += group.load.waiting;
      if (group.load.kv_pages_total > 0) {
        usage += 1 - static_cast<double>(group.load.kv_pages_free) /
                         static_cast<double>(group.load.kv_pages_total);
        ++with_pages;
      }
    }
    running_.each([&](Gauge& g) { g.Set(running); });
    waiting_.each([&](Gauge& g) { g.Set(waiting); });
    kv_usage_.each([&](Gauge& g) { g.Set(with_pages > 0 ? usage / with_pages : 0); });
  }

  // By place too: how many guesses deep it pays.
  void read_drafts(const GroupStatus& group, Seen& seen) {
    const auto& now = group.load.drafts;
    for (size_t place = 0; place < now.size(); ++place) {
      auto& [seen_proposed, seen_accepted] = seen.drafts[place];
      const double proposed = grown(group, seen_proposed, now[place].proposed);
      const double accepted = grown(group, seen_accepted, now[place].accepted);
      const Labels labels = {{"model_name", model_name_}, {"position", std::to_string(place)}};
      if (place == 0) drafts_.each([&](Counter& c) { c.Increment(proposed); });
      draft_tokens_.each([&](Counter& c) { c.Increment(proposed); });
      accepted_tokens_.each([&](Counter& c) { c.Increment(accepted); });
      for (auto* by_place : {accepted_by_place_, vllm_accepted_by_place_})
        if (by_place != nullptr) by_place->Add(labels).Increment(accepted);
    }
  }

  const std::string model_name_;
  const bool vllm_;
  prometheus::Registry registry_;
  prometheus::Family<Counter>*http_requests_, *http_refusals_, *generation_refusals_, *success_,
      *vllm_success_ = nullptr, *expert_rows_, *expert_busiest_rows_, *accepted_by_place_,
      *vllm_accepted_by_place_ = nullptr;
  prometheus::Family<Gauge>*group_up_, *group_restarts_, *group_steps_, *group_running_, *group_waiting_,
      *group_kv_free_, *group_kv_total_, *expert_imbalance_;
  Gauge *connections_, *in_flight_;
  Both<Counter> prompt_tokens_, generation_tokens_, cache_queries_, cache_hits_, preemptions_, drafts_,
      draft_tokens_, accepted_tokens_;
  Both<Gauge> running_, waiting_, kv_usage_;
  Both<Histogram> ttft_, itl_, tpot_, e2e_, queue_, prefill_, decode_, prompt_size_, generation_size_;

  std::mutex mutex_;
  std::map<uint32_t, Seen> seen_;  // guarded by mutex_, by group
};

}  // namespace

std::unique_ptr<Metrics> Metrics::create(std::string model_name, bool vllm_names) {
  return std::make_unique<PrometheusMetrics>(std::move(model_name), vllm_names);
}

}  // namespace millrace::gateway
