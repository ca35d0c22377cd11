#include "cluster/internal/wire.h"

#include <fmt/core.h>

namespace millrace::cluster {
namespace {

using engine::FinishReason;
using engine::GenerateEvent;
using engine::GenerateRequest;
using engine::TokenOut;

std::unexpected<Status> malformed(std::string what) {
  return fail(Code::data_loss, "malformed message from the peer: " + std::move(what));
}

template <class T>
std::vector<T> to_vector(const google::protobuf::RepeatedField<T>& field) {
  return {field.begin(), field.end()};
}

void tokens_to_wire(const std::vector<TokenOut>& tokens, bool with_logprobs, wire::Tokens* out) {
  out->mutable_id()->Reserve(static_cast<int>(tokens.size()));
  for (const TokenOut& token : tokens) {
    out->add_id(token.token);
    if (!with_logprobs) continue;
    out->add_logprob(token.logprob);
    out->add_top_count(static_cast<uint32_t>(token.top.size()));
    for (const engine::TokenLogprob& top : token.top) {
      out->add_top_id(top.token);
      out->add_top_logprob(top.logprob);
    }
  }
}

bool any_logprobs(const std::vector<TokenOut>& tokens) {
  for (const TokenOut& token : tokens)
    if (token.logprob != 0 || !token.top.empty()) return true;
  return false;
}

Expected<std::vector<TokenOut>> tokens_from_wire(const wire::Tokens& in) {
  const bool with_logprobs = in.logprob_size() > 0;
  if (with_logprobs && (in.logprob_size() != in.id_size() || in.top_count_size() != in.id_size()))
    return malformed(fmt::format("{} tokens with {} log-probabilities and {} counts", in.id_size(),
                                 in.logprob_size(), in.top_count_size()));
  if (in.top_id_size() != in.top_logprob_size())
    return malformed(fmt::format("{} alternatives with {} values", in.top_id_size(), in.top_logprob_size()));
  std::vector<TokenOut> tokens(static_cast<size_t>(in.id_size()));
  int top = 0;
  for (int i = 0; i < in.id_size(); ++i) {
    TokenOut& token = tokens[static_cast<size_t>(i)];
    token.token = in.id(i);
    if (!with_logprobs) continue;
    token.logprob = in.logprob(i);
    const uint32_t count = in.top_count(i);
    if (count > static_cast<uint32_t>(in.top_id_size() - top))
      return malformed(fmt::format("a token with {} alternatives, {} left", count, in.top_id_size() - top));
    token.top.reserve(count);
    for (uint32_t k = 0; k < count; ++k, ++top) token.top.push_back({in.top_id(top), in.top_logprob(top)});
  }
  return tokens;
}

size_t token_bytes(const std::vector<TokenOut>& tokens) {
  size_t bytes = 0;
  for (const TokenOut& token : tokens) bytes += sizeof(TokenOut) + token.top.size() * 16;
  return bytes;
}

}  // namespace

void to_wire(const GenerateRequest& request, wire::Submit* out) {
  out->set_id(request.id.value);
  out->mutable_prompt_tokens()->Assign(request.prompt.tokens.begin(), request.prompt.tokens.end());
  for (const engine::TextSegment& segment : request.prompt.text) {
    wire::TextSegment* text = out->add_prompt_text();
    text->set_text(segment.text);
    text->set_parse_special(segment.parse_special);
  }
  out->set_add_special(request.prompt.add_special);
  out->mutable_resumed()->Assign(request.resumed.begin(), request.resumed.end());

  const engine::SamplingParams& from = request.sampling;
  wire::Sampling* sampling = out->mutable_sampling();
  sampling->set_temperature(from.temperature);
  sampling->set_top_p(from.top_p);
  sampling->set_top_k(from.top_k);
  sampling->set_min_p(from.min_p);
  sampling->set_presence_penalty(from.presence_penalty);
  sampling->set_frequency_penalty(from.frequency_penalty);
  sampling->set_repetition_penalty(from.repetition_penalty);
  for (const auto& [token, value] : from.logit_bias) {
    sampling->add_logit_bias_token(token);
    sampling->add_logit_bias_value(value);
  }
  sampling->set_seed(from.seed);

  wire::Stop* stop = out->mutable_stop();
  stop->set_max_tokens(request.stop.max_tokens);
  stop->set_min_tokens(request.stop.min_tokens);
  for (const std::string& text : request.stop.strings) stop->add_strings(text);
  stop->mutable_token_ids()->Assign(request.stop.token_ids.begin(), request.stop.token_ids.end());
  stop->set_ignore_eos(request.stop.ignore_eos);
  stop->set_include_stop_in_text(request.stop.include_stop_in_text);

  out->set_top_logprobs(request.top_logprobs);
  out->set_prompt_logprobs(request.prompt_logprobs);
  out->set_skip_special_tokens(request.skip_special_tokens);
  out->set_priority(request.priority);
  out->set_cache_salt(request.cache_salt);
  if (request.reasoning.used()) {
    wire::Reasoning* reasoning = out->mutable_reasoning();
    reasoning->set_open(request.reasoning.open);
    reasoning->set_close(request.reasoning.close);
    reasoning->set_start(static_cast<int>(request.reasoning.start));
    reasoning->set_begun(request.reasoning.begun);
  }
}

Expected<GenerateRequest> from_wire(const wire::Submit& in) {
  GenerateRequest request;
  request.id = RequestId(in.id());
  request.prompt.tokens = to_vector(in.prompt_tokens());
  for (const wire::TextSegment& segment : in.prompt_text())
    request.prompt.text.push_back({segment.text(), segment.parse_special()});
  request.prompt.add_special = in.add_special();
  request.resumed = to_vector(in.resumed());

  const wire::Sampling& from = in.sampling();
  if (from.logit_bias_token_size() != from.logit_bias_value_size())
    return malformed(fmt::format("{} biased tokens with {} values", from.logit_bias_token_size(),
                                 from.logit_bias_value_size()));
  engine::SamplingParams& sampling = request.sampling;
  sampling.temperature = from.temperature();
  sampling.top_p = from.top_p();
  sampling.top_k = from.top_k();
  sampling.min_p = from.min_p();
  sampling.presence_penalty = from.presence_penalty();
  sampling.frequency_penalty = from.frequency_penalty();
  sampling.repetition_penalty = from.repetition_penalty();
  for (int i = 0; i < from.logit_bias_token_size(); ++i)
    sampling.logit_bias.emplace_back(from.logit_bias_token(i), from.logit_bias_value(i));
  sampling.seed = from.seed();

  request.stop.max_tokens = in.stop().max_tokens();
  request.stop.min_tokens = in.stop().min_tokens();
  request.stop.strings.assign(in.stop().strings().begin(), in.stop().strings().end());
  request.stop.token_ids = to_vector(in.stop().token_ids());
  request.stop.ignore_eos = in.stop().ignore_eos();
  request.stop.include_stop_in_text = in.stop().include_stop_in_text();

  request.top_logprobs = in.top_logprobs();
  request.prompt_logprobs = in.prompt_logprobs();
  request.skip_special_tokens = in.skip_special_tokens();
  request.priority = in.priority();
  request.cache_salt = in.cache_salt();
  if (in.has_reasoning())
    request.reasoning = {in.reasoning().open(), in.reasoning().close(),
                         static_cast<engine::ReasoningFormat::Start>(in.reasoning().start()),
                         in.reasoning().begun()};
  return request;
}

void to_wire(GenerateEvent&& event, wire::Event* out) {
  out->set_id(event.id.value);
  out->set_has_prompt(event.has_prompt);
  out->set_prompt_token_count(event.prompt_tokens);
  out->set_cached_token_count(event.cached_tokens);
  out->set_queue_s(event.queue_s);
  out->mutable_prompt_ids()->Assign(event.prompt_ids.begin(), event.prompt_ids.end());
  if (!event.prompt_logprobs.empty())
    tokens_to_wire(event.prompt_logprobs, true, out->mutable_prompt_logprobs());
  if (!event.tokens.empty()) tokens_to_wire(event.tokens, any_logprobs(event.tokens), out->mutable_tokens());
  out->set_text(std::move(event.text));
  out->set_finish(static_cast<int>(event.finish));
  out->set_stop_match(std::move(event.stop_match));
  out->set_stop_token(event.stop_token);
  if (!event.error.ok()) {
    wire::Error* error = out->mutable_error();
    error->set_code(static_cast<int>(event.error.code));
    error->set_message(std::move(event.error.message));
    error->set_reason(std::move(event.error.reason));
    error->set_param(std::move(event.error.param));
    error->set_retry_after_s(event.error.retry_after_s);
  }
}

Expected<GenerateEvent> from_wire(wire::Event&& in) {
  GenerateEvent event;
  event.id = RequestId(in.id());
  event.has_prompt = in.has_prompt();
  event.prompt_tokens = in.prompt_token_count();
  event.cached_tokens = in.cached_token_count();
  event.queue_s = in.queue_s();
  event.prompt_ids = to_vector(in.prompt_ids());
  if (in.has_prompt_logprobs()) event.prompt_logprobs = MR_TRY(tokens_from_wire(in.prompt_logprobs()));
  if (in.has_tokens()) event.tokens = MR_TRY(tokens_from_wire(in.tokens()));
  event.text = std::move(*in.mutable_text());
  if (in.finish() < 0 || in.finish() > static_cast<int>(FinishReason::error))
    return malformed(fmt::format("finish reason {}", in.finish()));
  event.finish = static_cast<FinishReason>(in.finish());
  event.stop_match = std::move(*in.mutable_stop_match());
  event.stop_token = in.stop_token();
  if (in.has_error()) {
    const int code = in.error().code();
    if (code <= 0 || code > static_cast<int>(Code::unauthenticated))
      return malformed(fmt::format("code {}", code));
    event.error.code = static_cast<Code>(code);
    event.error.message = std::move(*in.mutable_error()->mutable_message());
    event.error.reason = std::move(*in.mutable_error()->mutable_reason());
    event.error.param = std::move(*in.mutable_error()->mutable_param());
    event.error.retry_after_s = in.error().retry_after_s();
  }
  if ((event.finish == FinishReason::error) != !event.error.ok())
    return malformed(
        fmt::format("finish reason {} with error code {}", in.finish(), static_cast<int>(event.error.code)));
  return event;
}

void to_wire(const engine::GroupLoad& load, wire::Load* out) {
  out->set_steps(load.steps);
  out->set_last_step_age_ms(load.last_step_age_ms);
  out->set_running(load.running);
  out->set_waiting(load.waiting);
  out->set_kv_pages_total(load.kv_pages_total);
  out->set_kv_pages_free(load.kv_pages_free);
  out->set_prompt_tokens(load.prompt_tokens);
  out->set_cached_tokens(load.cached_tokens);
  out->set_generated_tokens(load.generated_tokens);
  out->set_preemptions(load.preemptions);
  for (const auto& mixture : load.experts) {
    out->add_expert_layers(mixture.layer);
    out->add_expert_imbalances(mixture.imbalance);
    out->add_expert_rows(mixture.rows);
    out->add_expert_busiest_rows(mixture.busiest_rows);
  }
  for (const auto& place : load.drafts) {
    out->add_drafts_proposed(place.proposed);
    out->add_drafts_accepted(place.accepted);
  }
}

engine::GroupLoad from_wire(const wire::Load& in) {
  std::vector<engine::ExpertBalance> experts;
  for (int i = 0; i < std::min(in.expert_layers_size(), in.expert_imbalances_size()); ++i)
    experts.push_back({.layer = in.expert_layers(i),
                       .rows = i < in.expert_rows_size() ? in.expert_rows(i) : 0,
                       .busiest_rows = i < in.expert_busiest_rows_size() ? in.expert_busiest_rows(i) : 0,
                       .imbalance = in.expert_imbalances(i)});
  std::vector<engine::DraftCount> drafts;
  for (int i = 0; i < std::min({in.drafts_proposed_size(), in.drafts_accepted_size(), engine::kMaxDrafts});
       ++i)
    drafts.push_back({.proposed = in.drafts_proposed(i), .accepted = in.drafts_accepted(i)});
  return {.steps = in.steps(),
          .last_step_age_ms = in.last_step_age_ms(),
          .running = in.running(),
          .waiting = in.waiting(),
          .kv_pages_total = in.kv_pages_total(),
          .kv_pages_free = in.kv_pages_free(),
          .prompt_tokens = in.prompt_tokens(),
          .cached_tokens = in.cached_tokens(),
          .generated_tokens = in.generated_tokens(),
          .preemptions = in.preemptions(),
          .drafts = std::move(drafts),
          .experts = std::move(experts)};
}

void to_wire(const GroupInfo& info, wire::Hello* out) {
  out->set_protocol_version(kProtocolVersion);
  out->set_group(info.id.value);
  out->set_model_fingerprint(info.model_fingerprint);
  out->set_max_model_len(info.max_model_len);
  out->set_kv_cache_bytes(info.kv_cache_bytes);
  out->set_max_num_seqs(info.max_num_seqs);
  out->set_max_num_batched_tokens(info.max_num_batched_tokens);
  out->set_max_waiting(info.max_waiting);
  out->set_prefix_caching(info.prefix_caching);
  out->set_compute_threads(info.compute_threads);
  out->set_boot_id(info.boot_id);
  out->set_restarts(info.restarts);
  out->set_pid(info.pid);
}

Expected<GroupInfo> from_wire(const wire::Hello& in) {
  if (in.protocol_version() != kProtocolVersion)
    return fail(
        Code::failed_precondition,
        fmt::format("the group speaks protocol version {}, this gateway {}: run the same build on both sides",
                    in.protocol_version(), kProtocolVersion));
  if (in.max_num_seqs() <= 0 || in.max_waiting() < 0 || in.max_model_len() < 0)
    return malformed(fmt::format("hello with max_num_seqs {}, max_waiting {}, max_model_len {}",
                                 in.max_num_seqs(), in.max_waiting(), in.max_model_len()));
  return GroupInfo{.id = GroupId(in.group()),
                   .model_fingerprint = in.model_fingerprint(),
                   .max_model_len = in.max_model_len(),
                   .kv_cache_bytes = in.kv_cache_bytes(),
                   .max_num_seqs = in.max_num_seqs(),
                   .max_num_batched_tokens = in.max_num_batched_tokens(),
                   .max_waiting = in.max_waiting(),
                   .prefix_caching = in.prefix_caching(),
                   .compute_threads = in.compute_threads(),
                   .boot_id = in.boot_id(),
                   .restarts = in.restarts(),
                   .pid = in.pid()};
}

size_t estimated_bytes(const GenerateEvent& event) {
  return sizeof(GenerateEvent) + event.text.size() + event.stop_match.size() + event.prompt_ids.size() * 5 +
         token_bytes(event.tokens) + token_bytes(event.prompt_logprobs) + event.error.message.size();
}

}  // namespace millrace::cluster
