// Packing as jobs, each of which writes places of the output that are known beforehand, and the run that does
// them on all threads, keeps the journal, and continues what an earlier run left. Private to the room.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/internal/error_feedback.h"
#include "model/internal/output_file.h"
#include "model/internal/packed_layout.h"
#include "model/packed_model.h"

namespace millrace::model {

struct ByteRange {
  uint64_t offset = 0, size = 0;
};

struct PackScratch {  // one thread's buffers, kept from job to job
  std::vector<float> floats;
  std::vector<std::byte> bytes;
  std::vector<float> scale;
  std::vector<int32_t> sum;
  std::vector<int8_t> rounded;
  RoundScratch rounding;
};

class JobOutput;

struct PackJob {
  size_t section = 0;             // of the layout
  std::vector<ByteRange> places;  // all of what it writes, in order; none: it only checks
  uint64_t cost = 0;              // bytes written or compared: what progress counts
  uint64_t scratch_bytes = 0;     // memory while it runs
  std::function<Expected<void>(PackScratch&, JobOutput&)> run;
};

// Where a job puts its bytes, place after place.
class JobOutput {
 public:
  JobOutput(OutputFile& file, const PackJob& job) : file_(file), job_(job) {}
  Expected<void> put(std::span<const std::byte> bytes);  // exactly the next place
  bool complete() const { return next_ == job_.places.size(); }
  uint64_t checksum() const { return checksum_; }

 private:
  OutputFile& file_;
  const PackJob& job_;
  size_t next_ = 0;
  uint64_t checksum_ = 0;
};

struct PackRun {
  const std::vector<PackJob>& jobs;  // those of a section next to each other
  std::vector<Section>& sections;    // gets the checksums
  OutputFile& file;
  int threads = 1;
  bool forget = false;  // the file would fill the page cache
  const Progress& progress;
};
// The first error stops the rest; what was done by then is in the journal.
Expected<void> run_jobs(const PackRun& run);

// At most so many threads that their jobs' scratch fits `budget`; at least one.
int threads_within(uint64_t budget, int threads, const std::vector<PackJob>& jobs);

}  // namespace millrace::model
