// The weights of a plan as jobs of packing: some hundred rows each, read, folded, rotated, quantised,
// written. Private to the room.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/internal/calibrated.h"
#include "model/internal/checkpoint.h"
#include "model/internal/pack_run.h"
#include "model/internal/plan.h"

namespace millrace::model {

// Sections in file order, each at its place, checksums yet to come.
struct PackLayout {
  std::vector<Section> sections;
  std::map<std::string, size_t, std::less<>> index;  // by name
  uint64_t end = 0;                                  // behind the last, aligned

  void add(const std::string& name, uint64_t size);
  const Section& at(const std::string& name) const { return sections[index.at(name)]; }
};

// All outlive the packer, and it outlives its jobs.
class Packer {
 public:
  Packer(const Checkpoint& checkpoint, const Plan& plan, PackType type, const PackLayout& layout,
         const CalibrationInputs* calibration)
      : checkpoint_(checkpoint), plan_(plan), type_(type), layout_(layout) {
    if (calibration != nullptr && type == PackType::int8) feedback_.emplace(*calibration);
  }

  // In the order of the file.
  std::vector<PackJob> jobs();
  // Memory that they hold together, beside each one's scratch_bytes; known once they are.
  uint64_t shared_bytes() const { return shared_bytes_; }

  // Called by each_weight().
  void embed(const PlannedEmbed& m);
  void gain(const PlannedGain& g);
  void linear(const PlannedLinear& l);
  void experts(const PlannedLinear& l, int count) {
    for (int e = 0; e < count; ++e) linear(of_experts_.emplace_back(l.of_expert(e)));
  }
  void head(const PlannedHead& m) {
    if (int8() || !m.shares_matrix) linear(m.head);
  }

 private:
  bool int8() const { return type_ == PackType::int8; }
  PackType stored_type(const PlannedLinear& l) const { return l.always_float ? PackType::float32 : type_; }
  void add_rows(const PlannedLinear& l, int64_t begin, int64_t end);

  Expected<void> write_embedding(const PlannedEmbed& m, int64_t begin, int64_t end, PackScratch& scratch,
                                 JobOutput& out) const;
  Expected<void> write_bias(const PlannedLinear& l, JobOutput& out) const;
  Expected<void> write_rows(const PlannedLinear& l, int64_t begin, int64_t end, PackScratch& scratch,
                            JobOutput& out) const;
  Expected<void> round_rows(const PlannedLinear& l, int64_t begin, int64_t end, PackScratch& scratch) const;
  Expected<void> turn_rows(const PlannedPart& part, float* w, int64_t rows, int64_t columns) const;
  Expected<void> load_rows(const PlannedLinear& l, int64_t begin, int64_t end, float* out) const;

  const Checkpoint& checkpoint_;
  const Plan& plan_;
  const PackType type_;
  const PackLayout& layout_;
  mutable std::optional<FeedbackCache> feedback_;
  std::deque<PlannedLinear> of_experts_;  // jobs refer to them
  std::vector<PackJob> jobs_;
  uint64_t shared_bytes_ = 0;
};

}  // namespace millrace::model
