#include "cluster/group_client.h"

#include <fmt/core.h>
#include <group.grpc.pb.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/internal/address.h"
#include "cluster/internal/wire.h"

namespace millrace::cluster {
namespace {

using Stream = grpc::ClientReaderWriter<wire::GatewayMessage, wire::GroupMessage>;

std::chrono::nanoseconds to_duration(double seconds) {
  return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

class GroupClientImpl final : public GroupClient {
 public:
  GroupClientImpl(GroupClientOptions options, Callbacks callbacks, std::string target)
      : options_(std::move(options)), callbacks_(std::move(callbacks)), target_(std::move(target)) {
    thread_ = std::thread([this] { run(); });
  }

  ~GroupClientImpl() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      if (context_ != nullptr) context_->TryCancel();
    }
    wake_.notify_all();
    thread_.join();
  }

  bool submit(const engine::GenerateRequest& request) override {
    wire::Submit submit;
    to_wire(request, &submit);
    const size_t bytes = submit.ByteSizeLong();
    const std::lock_guard lock(mutex_);
    if (!accepting_ || queued_bytes_ + bytes > options_.max_queued_bytes) return false;
    queued_bytes_ += bytes;
    submits_.push_back(std::move(submit));
    wake_.notify_all();
    return true;
  }

  void cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    if (!accepting_) return;  // the session's end cancels everything
    // A request that is still in our queue goes no further.
    const auto queued = std::find_if(submits_.begin(), submits_.end(),
                                     [&](const wire::Submit& submit) { return submit.id() == id.value; });
    if (queued != submits_.end()) {
      queued_bytes_ -= queued->ByteSizeLong();
      submits_.erase(queued);
      return;
    }
    cancels_.push_back(id.value);
    wake_.notify_all();
  }

  bool connected() const override {
    const std::lock_guard lock(mutex_);
    return accepting_;
  }
  Status last_error() const override {
    const std::lock_guard lock(mutex_);
    return last_error_;
  }

 private:
  // The client's thread: one session after another. Each has a reader (which calls back) and a writer.
  void run() {
    double backoff_s = options_.backoff_initial_s;
    while (true) {
      const Status why = run_session();
      std::unique_lock lock(mutex_);
      if (stopping_) return;
      if (was_up_) backoff_s = options_.backoff_initial_s;
      was_up_ = false;
      if (why.message != last_error_.message)
        log(LogLevel::info, "cluster", "group at {}: {}", options_.address, why.message);
      last_error_ = why;
      // A group that refuses us (version, model) will do so until somebody acts: no hurry.
      const double wait_s = why.code == Code::failed_precondition ? options_.backoff_cap_s : backoff_s;
      wake_.wait_for(lock, to_duration(wait_s), [&] { return stopping_; });
      if (stopping_) return;
      backoff_s = std::min(backoff_s * 2, options_.backoff_cap_s);
    }
  }

  Status run_session() {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
    arguments.SetMaxSendMessageSize(static_cast<int>(kMaxMessageBytes));
    // Backoff and retries are ours: a fresh subchannel tries at once, where a shared one would wait gRPC's
    // own second.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    const auto channel = grpc::CreateCustomChannel(target_, grpc::InsecureChannelCredentials(), arguments);
    const auto stub = wire::Group::NewStub(channel);
    grpc::ClientContext context;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return {.code = Code::cancelled, .message = "stopping"};
      context_ = &context;
      session_over_ = greeted_ = false;
      heard_ns_.store(monotonic_ns());
    }
    Status why;
    std::unique_ptr<Stream> stream;
    std::thread reader([&] {
      // Here, not in the client's own thread: the synchronous API connects inside this call, for as long as
      // it takes.
      auto connecting = stub->Session(&context);
      {
        const std::lock_guard lock(mutex_);
        stream = std::move(connecting);
      }
      why = read_loop(stream.get());
      // When the group ended the stream, its status is still to be read: then nothing to cancel.
      if (!why.ok()) context.TryCancel();
      end_session();
    });
    std::thread writer([&] { write_loop(stream, &context); });
    watch(&context);
    reader.join();
    writer.join();
    const grpc::Status end = stream->Finish();
    bool silent = false;
    {
      const std::lock_guard lock(mutex_);
      context_ = nullptr;
      silent = silent_;
      silent_ = false;
    }
    if (silent) {
      why = {.code = Code::deadline_exceeded,
             .message = "no word from the group: the connection is given up"};
    } else if (why.ok()) {
      why = {
          .code = Code::unavailable,
          .message = end.error_message().empty() ? "the group closed the connection" : end.error_message()};
    }
    if (was_up_) callbacks_.down(why);
    return why;
  }

  // Reads until the stream ends; an error only for what the group did wrong.
  Status read_loop(Stream* stream) {
    wire::GroupMessage message;
    if (!stream->Read(&message)) return {};
    auto info = from_wire(message.hello());
    if (!info) return info.error();
    if (options_.model_fingerprint != 0 && info->model_fingerprint != options_.model_fingerprint)
      return {.code = Code::failed_precondition,
              .message = fmt::format("the group serves model {:016x}, this gateway {:016x}",
                                     info->model_fingerprint, options_.model_fingerprint)};
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return {};
      was_up_ = greeted_ = accepting_ = true;
      last_error_ = {};
      heard_ns_.store(monotonic_ns());
    }
    callbacks_.up(*info);
    while (stream->Read(&message)) {
      heard_ns_.store(monotonic_ns());
      std::vector<engine::GenerateEvent> events;
      events.reserve(static_cast<size_t>(message.events_size()));
      for (wire::Event& wire_event : *message.mutable_events()) {
        auto event = from_wire(std::move(wire_event));
        if (!event) return event.error();
        events.push_back(std::move(*event));
      }
      callbacks_.events(std::move(events), from_wire(message.load()));
    }
    return {};
  }

  void end_session() {
    const std::lock_guard lock(mutex_);
    session_over_ = true;
    accepting_ = false;
    submits_.clear();
    cancels_.clear();
    queued_bytes_ = 0;
    wake_.notify_all();
  }

  // Until the session's end: gives it up when the group is silent. (The reader and the writer may both be
  // blocked.)
  void watch(grpc::ClientContext* context) {
    std::unique_lock lock(mutex_);
    while (!session_over_) {
      wake_.wait_for(lock, kHeartbeatInterval, [&] { return session_over_; });
      const double limit_s =
          greeted_ ? std::chrono::duration<double>(kGroupSilenceLimit).count() : options_.connect_timeout_s;
      if (!session_over_ && !silent_ &&
          static_cast<double>(monotonic_ns() - heard_ns_.load()) * 1e-9 > limit_s) {
        silent_ = true;
        context->TryCancel();
      }
    }
  }

  // Sends what is queued, and pings. `stream` may be used once the hello has come.
  void write_loop(const std::unique_ptr<Stream>& stream, grpc::ClientContext* context) {
    int64_t sent_ns = monotonic_ns();
    while (true) {
      wire::GatewayMessage message;
      {
        std::unique_lock lock(mutex_);
        const auto has_work = [&] {
          return session_over_ || (greeted_ && !(submits_.empty() && cancels_.empty()));
        };
        wake_.wait_for(lock, kHeartbeatInterval, has_work);
        if (session_over_) return;
        if (!greeted_) continue;
        take_queued(&message);
      }
      const bool due = monotonic_ns() - sent_ns > std::chrono::nanoseconds(kPingInterval).count();
      if (message.submit().empty() && message.cancel().empty() && !due) continue;
      message.set_ping(true);
      if (!stream->Write(message)) {
        context->TryCancel();  // the reader then ends too
        return;
      }
      sent_ns = monotonic_ns();
    }
  }

  // Guarded by mutex_: moves all cancels and up to kMessageTargetBytes of submits (at least one) into a
  // message.
  void take_queued(wire::GatewayMessage* message) {
    for (const uint64_t id : cancels_) message->add_cancel(id);
    cancels_.clear();
    size_t bytes = 0, taken = 0;
    while (taken < submits_.size() && bytes < kMessageTargetBytes) {
      bytes += submits_[taken].ByteSizeLong();
      *message->add_submit() = std::move(submits_[taken++]);
    }
    submits_.erase(submits_.begin(), submits_.begin() + static_cast<std::ptrdiff_t>(taken));
    queued_bytes_ -= bytes;
  }

  const GroupClientOptions options_;
  const Callbacks callbacks_;
  const std::string target_;
  std::thread thread_;
  std::atomic<int64_t> heard_ns_{0};
  bool was_up_ = false;  // the reader's, then (after it is joined) the client's thread

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  grpc::ClientContext* context_ = nullptr;
  std::vector<wire::Submit> submits_;
  std::vector<uint64_t> cancels_;
  size_t queued_bytes_ = 0;
  bool stopping_ = false, accepting_ = false, greeted_ = false, session_over_ = false, silent_ = false;
  Status last_error_;
};

}  // namespace

Expected<std::unique_ptr<GroupClient>> GroupClient::start(GroupClientOptions options, Callbacks callbacks) {
  const GroupAddress address = MR_TRY(parse_group_address(options.address));
  return std::make_unique<GroupClientImpl>(std::move(options), std::move(callbacks), address.grpc_target);
}

}  // namespace millrace::cluster
