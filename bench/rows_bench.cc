// Row operations on SmolLM2's widths, one thread, in cache: microseconds per call and elements per
// nanosecond.
//
//   millrace_rows_bench [--isa amx,avx2] [--m 1,512] [--seconds 0.1]
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/thread_team.h"
#include "kernels/rows.h"

namespace millrace::kernels {
namespace {

constexpr int kHidden = 576, kInner = 1536, kHeads = 12, kHeadDim = 64, kVocabulary = 49152;

class Bench {
 public:
  Bench(Isa isa, int m, double seconds)
      : rows_(row_kernels_at(isa)),
        m_(m),
        seconds_(seconds),
        x_(size_t(m) * 2 * kInner),
        table_(size_t(m) * kHeadDim) {
    std::mt19937 gen(1);
    std::normal_distribution<float> normal(0, 1);
    for (float& value : x_) value = normal(gen);
    for (float& value : table_) value = 0.70710678f;
    logits_.resize(kVocabulary);
    for (float& value : logits_) value = normal(gen);
    gain_.assign(kInner, 1.0f);
    q_.resize(size_t(m) * kInner);
    scale_.resize(size_t(m));
    out_.resize(std::max<size_t>(size_t(m) * kInner, kVocabulary));
  }

  void run(std::string_view isa) {
    const QuantRows quantised{q_.data(), kInner, scale_.data()};
    float* out = out_.data();
    line(isa, "rmsnorm_quant 576", kHidden,
         [&] { rows_.rmsnorm_quant(x_.data(), kHidden, gain_.data(), 1e-5f, m_, kHidden, quantised); });
    line(isa, "quant 576", kHidden, [&] { rows_.quant(x_.data(), kHidden, m_, kHidden, quantised); });
    line(isa, "rope 12x64", kHeads * kHeadDim, [&] {
      rows_.rope_half(out, kHeads * kHeadDim, m_, kHeads, kHeadDim, table_.data(), table_.data(),
                      kHeadDim / 2);
    });
    line(isa, "swiglu 1536", kInner, [&] { rows_.swiglu(x_.data(), 2 * kInner, m_, kInner, out, kInner); });
    line(isa, "swiglu_hadamard_quant", kInner,
         [&] { rows_.swiglu_hadamard_quant(x_.data(), 2 * kInner, m_, kInner, 512, quantised); });
    if (m_ > 1) return;
    line(isa, "argmax 49152", kVocabulary,
         [&] { out[0] = float(rows_.argmax(logits_.data(), kVocabulary)); });
    line(isa, "softmax_stats 49152", kVocabulary,
         [&] { rows_.softmax_stats(logits_.data(), kVocabulary, 1, out, out + 1); });
  }

 private:
  void line(std::string_view isa, const char* name, int width, const std::function<void()>& call) const {
    const FlushDenormals flush;
    call();
    double best = 1e30, total = 0;
    int64_t calls = 0;
    const int batch = std::max(1, 2000000 / (m_ * width));
    while (total < seconds_) {
      const double start = monotonic_s();
      for (int i = 0; i < batch; ++i) call();
      const double seconds = monotonic_s() - start;
      best = std::min(best, seconds / batch);
      total += seconds;
      calls += batch;
    }
    fmt::print("{:8} {:6} {:24} {:10.2f} {:10.2f} {:8.2f}\n", isa, m_, name, total / double(calls) * 1e6,
               best * 1e6, 1e-9 * m_ * width / best);
  }

  const RowKernels& rows_;
  const int m_;
  const double seconds_;
  std::vector<float> x_, table_, logits_, gain_, out_;
  std::vector<int8_t> q_;
  std::vector<float> scale_;
};

}  // namespace
}  // namespace millrace::kernels

int main(int argc, char** argv) {
  using namespace millrace::kernels;
  std::vector<std::string> names;
  std::vector<int> m = {1, 512};
  double seconds = 0.1;
  CLI::App app("Row operations, measured");
  app.add_option("--isa", names, "levels, comma-separated (default: the active one)")->delimiter(',');
  app.add_option("--m", m, "rows, comma-separated")->delimiter(',');
  app.add_option("--seconds", seconds, "per line");
  CLI11_PARSE(app, argc, argv);
  fmt::print("{:8} {:>6} {:24} {:>10} {:>10} {:>8}\n", "isa", "rows", "operation", "us", "best_us", "el/ns");
  for (const Isa isa : supported_isas()) {
    const bool named = std::ranges::find(names, isa_name(isa)) != names.end();
    if (names.empty() ? isa != active_isa() : !named) continue;
    for (const int rows : m) Bench(isa, std::max(1, rows), seconds).run(isa_name(isa));
  }
  return 0;
}
