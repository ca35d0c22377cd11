#include "cluster/group_server.h"

#include <fmt/core.h>
#include <group.grpc.pb.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "cluster/internal/address.h"
#include "cluster/internal/wire.h"

namespace millrace::cluster {
namespace {

using engine::FinishReason;
using engine::GenerateEvent;
using Stream = grpc::ServerReaderWriter<wire::GroupMessage, wire::GatewayMessage>;

constexpr std::chrono::milliseconds kMinderInterval{50};

// One gateway's stream. The engine's step thread puts events in; the writer thread takes them out.
class GatewaySession {
 public:
  GatewaySession(grpc::ServerContext* context, size_t max_queued_bytes)
      : max_queued_bytes_(max_queued_bytes), context_(context) {}

  // From the engine's step thread; never blocks on the network.
  void push(std::vector<GenerateEvent>&& events, const engine::GroupLoad& load) {
    const std::lock_guard lock(mutex_);
    if (closed_ || overflowed_) return;
    for (GenerateEvent& event : events) {
      queued_bytes_ += estimated_bytes(event);
      queue_.push_back(std::move(event));
    }
    load_ = load;
    if (queued_bytes_ > max_queued_bytes_) {
      overflowed_ = true;
      queue_.clear();
      queue_.shrink_to_fit();
    }
    wake_.notify_one();
  }

  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    wake_.notify_all();
    if (context_ != nullptr) context_->TryCancel();
  }
  // The handler is about to return: the context must not be touched any more.
  void detach() {
    const std::lock_guard lock(mutex_);
    context_ = nullptr;
  }

  // From the minder: ends a session whose gateway does not read, or says nothing any more.
  void check() {
    const std::lock_guard lock(mutex_);
    if (closed_ || context_ == nullptr || cut_off_) return;
    const double silence_s = static_cast<double>(monotonic_ns() - heard_ns_.load()) * 1e-9;
    const bool silent = silence_s > std::chrono::duration<double>(kGatewaySilenceLimit).count();
    if (!overflowed_ && !silent) return;
    cut_off_ = true;
    log(LogLevel::warn, "cluster", "a gateway is cut off: {}",
        overflowed_ ? fmt::format("it left more than {} bytes of events unread", max_queued_bytes_)
                    : fmt::format("nothing heard for {:.1f} s", silence_s));
    context_->TryCancel();
  }

  void heard() { heard_ns_.store(monotonic_ns()); }

  void write_loop(Stream* stream, const engine::Engine& engine) {
    while (true) {
      std::vector<GenerateEvent> events;
      engine::GroupLoad load;
      {
        std::unique_lock lock(mutex_);
        wake_.wait_for(lock, kHeartbeatInterval, [&] { return closed_ || overflowed_ || !queue_.empty(); });
        if (closed_ || overflowed_) return;
        events.swap(queue_);
        queued_bytes_ = 0;
        load = load_;
      }
      if (events.empty()) load = engine.load();
      if (!write_events(stream, std::move(events), load)) return;
    }
  }

  // Guarded by the server's mutex: wire id -> engine id of what this session asked for.
  std::unordered_map<uint64_t, uint64_t> engine_ids;

 private:
  static bool write_events(Stream* stream, std::vector<GenerateEvent>&& events,
                           const engine::GroupLoad& load) {
    wire::GroupMessage message;
    size_t bytes = 0;
    for (size_t i = 0; i < events.size(); ++i) {
      GenerateEvent& event = events[i];
      const size_t event_bytes = estimated_bytes(event);
      if (event_bytes > kMaxMessageBytes - kMessageTargetBytes) event = too_large(event, event_bytes);
      to_wire(std::move(event), message.add_events());
      bytes += event_bytes;
      if (bytes >= kMessageTargetBytes && i + 1 < events.size()) {
        to_wire(load, message.mutable_load());
        if (!stream->Write(message)) return false;
        message.Clear();
        bytes = 0;
      }
    }
    to_wire(load, message.mutable_load());
    return stream->Write(message);
  }
  static GenerateEvent too_large(const GenerateEvent& event, size_t bytes) {
    GenerateEvent refusal{.id = event.id, .finish = FinishReason::error};
    refusal.error = {.code = Code::invalid_argument,
                     .message = fmt::format("one step's answer has {} bytes, the limit is {}: ask for fewer "
                                            "log-probabilities or a shorter prompt",
                                            bytes, kMaxMessageBytes),
                     .param = "logprobs"};
    return refusal;
  }

  const size_t max_queued_bytes_;
  std::atomic<int64_t> heard_ns_{monotonic_ns()};

  std::mutex mutex_;  // guards all below
  grpc::ServerContext* context_;
  std::condition_variable wake_;
  std::vector<GenerateEvent> queue_;
  size_t queued_bytes_ = 0;
  engine::GroupLoad load_;
  bool closed_ = false, overflowed_ = false, cut_off_ = false;
};

class GroupServerImpl final : public GroupServer, private wire::Group::Service {
 public:
  explicit GroupServerImpl(GroupServerOptions options) : options_(std::move(options)) {}

  ~GroupServerImpl() override {
    stopping_.store(true);
    {
      const std::lock_guard lock(mutex_);
      for (const auto& session : sessions_) session->close();
    }
    if (server_)
      server_->Shutdown(std::chrono::system_clock::now());  // cancels what is left, waits for handlers
    {
      // gRPC has waited already; this makes it so for eyes that cannot see into gRPC (ThreadSanitizer).
      std::unique_lock lock(mutex_);
      sessions_gone_.wait(lock, [&] { return sessions_.empty(); });
    }
    if (minder_.joinable()) minder_.join();
    engine_.reset();
    if (options_.status) options_.status->fields().ready.store(0);
  }

  Expected<void> start(const EngineFactory& make_engine) {
    const GroupAddress address = MR_TRY(parse_group_address(options_.address));
    engine_ = MR_TRY(make_engine(
        [this](std::span<GenerateEvent> events, const engine::GroupLoad& load) { on_step(events, load); }));
    describe();
    if (!address.socket_path.empty()) ::unlink(address.socket_path.c_str());

    int bound_port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address.socket_path.empty() ? options_.address : address.grpc_target,
                             grpc::InsecureServerCredentials(), &bound_port);
    builder.RegisterService(this);
    builder.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
    builder.SetMaxSendMessageSize(static_cast<int>(kMaxMessageBytes));
    // A session holds one of gRPC's threads; two pollers suffice for the few streams there are.
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    server_ = builder.BuildAndStart();
    if (!server_ || bound_port == 0)
      return fail(Code::unavailable,
                  fmt::format("cannot listen on {}: is the address in use, or the folder missing?",
                              options_.address));
    if (!address.socket_path.empty()) ::chmod(address.socket_path.c_str(), 0600);
    minder_ = std::thread([this] { mind(); });
    if (options_.status) options_.status->fields().ready.store(1);
    return {};
  }

  const GroupInfo& info() const override { return info_; }
  size_t live_requests() const override {
    const std::lock_guard lock(mutex_);
    return live_.size();
  }

 private:
  struct Live {
    std::shared_ptr<GatewaySession> session;
    uint64_t wire_id;
  };

  void describe() {
    const engine::EngineOptions& engine = engine_->options();
    info_ = {.id = options_.id,
             .model_fingerprint = options_.model_fingerprint,
             .max_model_len = engine.max_model_len,
             .kv_cache_bytes = static_cast<int64_t>(engine.kv_cache_bytes),
             .max_num_seqs = engine.max_num_seqs,
             .max_num_batched_tokens = engine.max_num_batched_tokens,
             .max_waiting = engine.max_waiting,
             .prefix_caching = engine.prefix_caching,
             .compute_threads = static_cast<int>(engine.cpus.size()),
             .boot_id = random_seed(),
             .restarts = options_.status ? options_.status->fields().restarts.load() : 0,
             .pid = ::getpid()};
  }

  // The engine's step thread.
  void on_step(std::span<GenerateEvent> events, const engine::GroupLoad& load) {
    std::vector<std::pair<std::shared_ptr<GatewaySession>, std::vector<GenerateEvent>>> batches;
    size_t pending = 0;
    {
      const std::lock_guard lock(mutex_);
      for (GenerateEvent& event : events) {
        const auto found = live_.find(event.id.value);
        if (found == live_.end()) continue;  // its session has ended
        event.id = RequestId(found->second.wire_id);
        auto batch = batches.begin();
        while (batch != batches.end() && batch->first != found->second.session) ++batch;
        if (batch == batches.end()) batch = batches.insert(batch, {found->second.session, {}});
        if (event.finish != FinishReason::none) {
          found->second.session->engine_ids.erase(found->second.wire_id);
          live_.erase(found);
        }
        batch->second.push_back(std::move(event));
      }
      pending = live_.size();
    }
    for (auto& [session, batch] : batches) session->push(std::move(batch), load);
    if (options_.status) {
      options_.status->fields().steps.store(load.steps);
      options_.status->fields().pending.store(pending);
    }
  }

  grpc::Status Session(grpc::ServerContext* context, Stream* stream) override {
    const auto session = std::make_shared<GatewaySession>(context, options_.max_queued_bytes);
    {
      const std::lock_guard lock(mutex_);
      if (stopping_.load()) return {grpc::StatusCode::UNAVAILABLE, "the group is stopping"};
      if (sessions_.size() >= static_cast<size_t>(options_.max_sessions))
        return {grpc::StatusCode::RESOURCE_EXHAUSTED,
                fmt::format("the group serves {} gateways, its limit", options_.max_sessions)};
      sessions_.insert(session);
    }
    wire::GroupMessage hello;
    to_wire(info_, hello.mutable_hello());
    grpc::Status end = grpc::Status::OK;
    if (stream->Write(hello)) {
      std::thread writer([&] { session->write_loop(stream, *engine_); });
      end = read_loop(session, stream);
      session->close();
      writer.join();
    }
    session->detach();
    forget(session);
    return end;
  }

  grpc::Status read_loop(const std::shared_ptr<GatewaySession>& session, Stream* stream) {
    wire::GatewayMessage message;
    while (stream->Read(&message)) {
      session->heard();
      // Cancels first: what they free may be what a submit of the same message needs.
      for (const uint64_t id : message.cancel()) cancel(*session, id);
      for (const wire::Submit& submit : message.submit()) {
        auto request = from_wire(submit);
        if (!request) {
          log(LogLevel::error, "cluster", "a gateway is cut off: {}", request.error().message);
          return {grpc::StatusCode::INVALID_ARGUMENT, request.error().message};
        }
        accept(session, std::move(*request));
      }
    }
    return grpc::Status::OK;
  }

  void accept(const std::shared_ptr<GatewaySession>& session, engine::GenerateRequest request) {
    const uint64_t wire_id = request.id.value;
    const RequestId id(next_id_.fetch_add(1));
    {
      const std::lock_guard lock(mutex_);
      // A gateway that uses an id twice at a time: the older request goes on, the newer is refused.
      if (!session->engine_ids.emplace(wire_id, id.value).second) {
        log(LogLevel::error, "cluster", "a gateway used request id {} twice; the second is ignored", wire_id);
        return;
      }
      live_.emplace(id.value, Live{session, wire_id});
      if (options_.status) options_.status->fields().pending.store(live_.size());
    }
    request.id = id;
    const auto submitted = engine_->submit(std::move(request));
    if (submitted) return;
    {
      const std::lock_guard lock(mutex_);
      live_.erase(id.value);
      session->engine_ids.erase(wire_id);
      if (options_.status) options_.status->fields().pending.store(live_.size());
    }
    GenerateEvent refusal{
        .id = RequestId(wire_id), .finish = FinishReason::error, .error = submitted.error()};
    std::vector<GenerateEvent> events;
    events.push_back(std::move(refusal));
    session->push(std::move(events), engine_->load());
  }

  void cancel(const GatewaySession& session, uint64_t wire_id) {
    uint64_t id = 0;
    {
      const std::lock_guard lock(mutex_);
      const auto found = session.engine_ids.find(wire_id);
      if (found == session.engine_ids.end()) return;  // finished meanwhile
      id = found->second;
    }
    engine_->cancel(RequestId(id));
  }

  // The session has ended: nobody wants its requests' tokens.
  void forget(const std::shared_ptr<GatewaySession>& session) {
    std::vector<uint64_t> ids;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [wire_id, id] : session->engine_ids) {
        ids.push_back(id);
        live_.erase(id);
      }
      session->engine_ids.clear();
      if (options_.status) options_.status->fields().pending.store(live_.size());
    }
    for (const uint64_t id : ids) engine_->cancel(RequestId(id));
    // Last: the destructor may go on now.
    const std::lock_guard lock(mutex_);
    sessions_.erase(session);
    sessions_gone_.notify_all();
  }

  void mind() {
    while (!stopping_.load()) {
      {
        const std::lock_guard lock(mutex_);
        for (const auto& session : sessions_) session->check();
      }
      if (options_.status) {
        StatusPage::Fields& page = options_.status->fields();
        page.steps.store(engine_->load().steps);
        page.beat_ns.store(monotonic_ns());
      }
      std::this_thread::sleep_for(kMinderInterval);
    }
  }

  // Constant after start().
  const GroupServerOptions options_;
  GroupInfo info_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<grpc::Server> server_;
  std::thread minder_;

  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> next_id_{1};

  // Guarded by mutex_ (and each session's engine_ids). Order: mutex_ before a session's own mutex.
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, Live> live_;
  std::set<std::shared_ptr<GatewaySession>> sessions_;
  std::condition_variable sessions_gone_;
};

}  // namespace

Expected<std::unique_ptr<GroupServer>> GroupServer::start(GroupServerOptions options,
                                                          const EngineFactory& make_engine) {
  auto server = std::make_unique<GroupServerImpl>(std::move(options));
  MR_TRY(server->start(make_engine));
  return server;
}

}  // namespace millrace::cluster
