#include "model/internal/pack_run.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "base/hash.h"
#include "base/units.h"

namespace millrace::model {
namespace {

enum JournalKind : uint32_t { kJobDone = 1, kSectionDone = 2 };

constexpr uint64_t kStoreAtOnce = 256 * kKiB;  // smaller ones wait for the kernel's own round
// Stored sections leave the page cache once so much has been written behind them.
constexpr uint64_t kForgetBehind = 256 * kMiB;

// Chained: the checksum of what stood before is the seed.
uint64_t hash_pieces(std::span<const std::byte> bytes, uint64_t seed) {
  for (size_t at = 0; at < bytes.size(); at += kChecksumPiece)
    seed = hash64(bytes.subspan(at, std::min(kChecksumPiece, bytes.size() - at)), seed);
  return seed;
}

class Run {
 public:
  explicit Run(const PackRun& run) : run_(run), job_done_(run.jobs.size()), jobs_left_(run.sections.size()) {
    for (const PackJob& job : run.jobs) {
      report_.bytes_total += job.cost;
      if (!job.places.empty()) ++jobs_left_[job.section];
    }
    report_.tensors_total = static_cast<int>(run.sections.size());
  }

  Expected<void> all() {
    MR_TRY(continue_earlier_run());
    report_.stage = PackProgress::Stage::packing;
    report_.bytes_found = report_.bytes_done;
    todo_.clear();
    for (size_t i = 0; i < run_.jobs.size(); ++i)
      if (!job_done_[i]) todo_.push_back(i);
    MR_TRY(on_all_threads([this](size_t i, PackScratch& scratch) { return do_job(i, scratch); }));
    return {};
  }

 private:
  using Work = std::function<Expected<void>(size_t job, PackScratch&)>;

  // Calls work for each job of todo_, in order, on all threads.
  Expected<void> on_all_threads(const Work& work) {
    std::atomic<size_t> next{0};
    std::atomic<bool> stop{false};
    Expected<void> first_error;
    const auto loop = [&] {
      PackScratch scratch;
      while (!stop.load(std::memory_order_relaxed)) {
        const size_t index = next.fetch_add(1);
        if (index >= todo_.size()) return;
        Expected<void> result;
        try {
          result = work(todo_[index], scratch);
        } catch (const std::bad_alloc&) {
          result = fail(Code::resource_exhausted,
                        fmt::format("out of memory while packing {}", name_of(todo_[index])));
        }
        if (result) continue;
        const std::lock_guard lock(mutex_);
        if (first_error) first_error = std::move(result);
        stop.store(true, std::memory_order_relaxed);
      }
    };
    std::vector<std::jthread> team;
    try {
      for (int i = 1; i < run_.threads; ++i) team.emplace_back(loop);
    } catch (const std::system_error&) {
      // No more threads for us (a container's pids.max, ulimit -u): those that are there do it all.
    }
    loop();
    team.clear();  // joins
    return first_error;
  }

  const std::string& name_of(size_t job) const { return run_.sections[run_.jobs[job].section].name; }

  // What the journal speaks of is done if the file's bytes still have the checksums.
  Expected<void> continue_earlier_run() {
    std::vector<const OutputFile::Entry*> of_job(run_.jobs.size()), of_section(run_.sections.size());
    for (const OutputFile::Entry& entry : run_.file.found()) {
      if (entry.kind == kJobDone && entry.index < of_job.size()) of_job[entry.index] = &entry;
      if (entry.kind == kSectionDone && entry.index < of_section.size()) of_section[entry.index] = &entry;
    }
    for (size_t i = 0; i < run_.jobs.size(); ++i)
      if (of_job[i] != nullptr) todo_.push_back(i);
    if (todo_.empty()) return {};
    report_.stage = PackProgress::Stage::checking;
    MR_TRY(on_all_threads([&](size_t i, PackScratch& scratch) -> Expected<void> {
      const PackJob& job = run_.jobs[i];
      uint64_t checksum = 0;
      for (const ByteRange& place : job.places) checksum = MR_TRY(hash_of(place, checksum, scratch));
      if (checksum != of_job[i]->checksum) return {};  // to be done again
      const std::lock_guard lock(mutex_);
      job_done_[i] = true;
      advance(job, false);
      return {};
    }));
    // A section whose jobs all hold has the checksum that was computed of the same bytes. Where that had not
    // come to pass, the last job is done again, and the section closes behind it.
    std::vector<size_t> last(run_.sections.size(), run_.jobs.size());
    for (size_t i = 0; i < run_.jobs.size(); ++i)
      if (!run_.jobs[i].places.empty()) last[run_.jobs[i].section] = i;
    for (size_t s = 0; s < run_.sections.size(); ++s) {
      if (jobs_left_[s] > 0 || last[s] == run_.jobs.size()) continue;
      if (of_section[s] != nullptr) {
        run_.sections[s].checksum = of_section[s]->checksum;
        ++report_.tensors_done;
        continue;
      }
      job_done_[last[s]] = false;
      ++jobs_left_[s];
      report_.bytes_done -= run_.jobs[last[s]].cost;
    }
    return {};
  }

  Expected<void> do_job(size_t i, PackScratch& scratch) {
    const PackJob& job = run_.jobs[i];
    JobOutput out(run_.file, job);
    MR_TRY(job.run(scratch, out));
    MR_CHECK(out.complete(), "a job of packing must write all of its places");
    for (const ByteRange& place : job.places)
      if (place.size >= kStoreAtOnce) run_.file.start_storing(place.offset, place.size);
    bool last = false;
    {
      const std::lock_guard lock(mutex_);
      MR_TRY(run_.file.record({kJobDone, static_cast<uint32_t>(i), out.checksum()}));
      last = advance(job, true);
    }
    return last ? close_section(job.section, scratch) : Expected<void>();
  }

  // Under the mutex. True for the last job of its section.
  bool advance(const PackJob& job, bool packing) {
    report_.bytes_done += job.cost;
    const bool last = !job.places.empty() && --jobs_left_[job.section] == 0;
    if (last && packing) ++report_.tensors_done;
    report_.what = run_.sections[job.section].name;
    if (run_.progress) run_.progress(report_);
    return last;
  }

  Expected<void> close_section(size_t s, PackScratch& scratch) {
    Section& section = run_.sections[s];
    section.checksum = MR_TRY(hash_of({section.offset, section.size}, 0, scratch));
    std::vector<ByteRange> to_forget;
    {
      const std::lock_guard lock(mutex_);
      MR_TRY(run_.file.record({kSectionDone, static_cast<uint32_t>(s), section.checksum}));
      if (run_.forget) {
        written_.push_back({section.offset, section.size});
        written_bytes_ += section.size;
        while (written_bytes_ > kForgetBehind) {
          to_forget.push_back(written_.front());
          written_bytes_ -= written_.front().size;
          written_.pop_front();
        }
      }
    }
    for (const ByteRange& range : to_forget) MR_TRY(run_.file.forget(range.offset, range.size));
    return {};
  }

  Expected<uint64_t> hash_of(const ByteRange& range, uint64_t seed, PackScratch& scratch) const {
    scratch.bytes.resize(std::max(scratch.bytes.size(), kChecksumPiece));
    for (uint64_t at = 0; at < range.size; at += kChecksumPiece) {
      const auto piece = std::span(scratch.bytes).first(std::min<uint64_t>(kChecksumPiece, range.size - at));
      MR_TRY(run_.file.read_at(range.offset + at, piece));
      seed = hash64(piece, seed);
    }
    return seed;
  }

  const PackRun& run_;
  std::vector<size_t> todo_;  // constant while threads run
  std::mutex mutex_;          // guards what follows, first_error, the journal, and calls of progress
  std::vector<bool> job_done_;
  std::vector<int64_t> jobs_left_;  // of each section
  std::deque<ByteRange> written_;   // not yet forgotten
  uint64_t written_bytes_ = 0;
  PackProgress report_;
};

}  // namespace

Expected<void> JobOutput::put(std::span<const std::byte> bytes) {
  MR_CHECK(next_ < job_.places.size() && job_.places[next_].size == bytes.size(),
           "a job of packing must write the places it has named");
  checksum_ = hash_pieces(bytes, checksum_);
  return file_.write_at(job_.places[next_++].offset, bytes);
}

Expected<void> run_jobs(const PackRun& run) { return Run(run).all(); }

int threads_within(uint64_t budget, int threads, const std::vector<PackJob>& jobs) {
  uint64_t largest = 1;
  for (const PackJob& job : jobs) largest = std::max(largest, job.scratch_bytes);
  return static_cast<int>(std::clamp<uint64_t>(budget / largest, 1, static_cast<uint64_t>(threads)));
}

}  // namespace millrace::model
