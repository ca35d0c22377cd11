// INT8 GEMM on the shapes that models use, beside what the machine gave in the same run.
//
//   millrace_kernels_bench [--isa amx] [--threads 2] [--m 1,32,512] [--shape down] [--seconds 0.3]
//
// Weights come from memory: calls walk through 1 GiB of them, as the layers of a model do, so no cache holds
// them from one call to the next. Work is split as the executor splits it: by columns up to 32 rows, by rows
// above. pct_peak: of the INT8 rate with operands in registers; pct_read: weight bytes against sequential
// reads.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "kernels/gemm_s8.h"
#include "kernels/machine_peak.h"

namespace millrace::kernels {
namespace {

struct Shape {
  const char* name;
  int n, k;
};
constexpr Shape kShapes[] = {
    {"smollm2.qkv", 960, 576},
    {"smollm2.o", 576, 576},
    {"smollm2.gate_up", 3072, 576},
    {"smollm2.down", 576, 1536},
    {"smollm2.head", 49152, 576},
    {"qwen0.5b.gate_up", 9728, 896},
    {"qwen0.5b.down", 896, 4864},
    {"square2048", 2048, 2048},
    {"square4096", 4096, 4096},
    // One routed expert: Qwen3-30B-A3B, DeepSeek-V2-Lite, DeepSeek-V3.
    {"moe.qwen3.gate_up", 1536, 2048},
    {"moe.qwen3.down", 2048, 768},
    {"moe.v2_lite.gate_up", 2816, 2048},
    {"moe.v2_lite.down", 2048, 1408},
    {"moe.v3.gate_up", 4096, 7168},
    {"moe.v3.down", 7168, 2048},
};

struct Options {
  std::string isa, shape;
  int threads = 0;
  std::vector<int> m = {1, 8, 32, 64, 256, 512};
  double seconds = 0.3;
  int row_panel = 0;         // rows of one call where rows are split; 0: all of a thread's rows
  int split_rows_from = 65;  // split by columns under this many rows, by rows from it
  bool reuse_out =
      false;          // every row panel of a thread writes the same place, as a fused consumer would have it
  bool hot = false;   // the same weights in every call
  bool hint = false;  // tell each call what comes after it
};

// Everything that a run over shapes shares: 1 GiB of weights, and activations and outputs for the largest of
// them.
class Bench {
 public:
  Bench(Isa isa, std::vector<int> cpus, MachinePeak peak)
      : isa_(isa), peak_(peak), team_(std::move(cpus)), weights_(Buffer::allocate(kGiB).value()) {
    std::mt19937_64 gen(1);
    auto* words = weights_.as<uint64_t>();
    for (size_t i = 0; i < 4 * kMiB / 8; ++i) words[i] = gen();
    for (size_t at = 4 * kMiB; at < kGiB; at += 4 * kMiB) std::copy_n(words, 4 * kMiB / 8, words + at / 8);
  }

  void run(const Shape& shape, int m, const Options& options) {
    const int64_t a_stride = padded_k(shape.k), out_stride = shape.n;
    auto a = Buffer::allocate(static_cast<size_t>(padded_m(m) * a_stride)).value();
    auto out = Buffer::allocate(static_cast<size_t>(m * out_stride) * sizeof(float)).value();
    std::mt19937_64 gen(2);
    for (size_t i = 0; i < a.size_bytes() / 8; ++i) a.as<uint64_t>()[i] = gen();
    const std::vector<float> a_scale(static_cast<size_t>(m), 0.01f),
        w_scale(static_cast<size_t>(shape.n), 0.01f);
    const std::vector<int32_t> sum(static_cast<size_t>(shape.n));
    const size_t matrix_bytes = weights_s8_tile_bytes(shape.n, shape.k);
    const size_t copies = options.hot ? 1 : std::max<size_t>(1, kGiB / matrix_bytes);

    double best = 1e30, total = 0;
    int64_t calls = 0;
    const double end = monotonic_s() + options.seconds;
    const int batch =
        std::max<int>(1, static_cast<int>(2e-3 * peak_.int8_tops * 1e12 / (2.0 * m * shape.n * shape.k) / 4));
    do {
      const double start = monotonic_s();
      for (int i = 0; i < batch; ++i, ++calls) {
        const auto weights = [&](int64_t call) {
          return WeightsS8{weights_.as<int8_t>() + static_cast<size_t>(call) % copies * matrix_bytes,
                           w_scale.data(), sum.data(), shape.n, shape.k};
        };
        const WeightsS8 w = weights(calls), next = weights(calls + 1);
        team_.run([&](int thread) {
          GemmS8Args args{.a = a.as<int8_t>(),
                          .a_stride = a_stride,
                          .a_scale = a_scale.data(),
                          .m = m,
                          .w = &w,
                          .n_begin = 0,
                          .n_end = shape.n,
                          .out = out.as<float>(),
                          .out_stride = out_stride,
                          .next = options.hint ? &next : nullptr};
          share(args, thread, options);
        });
      }
      const double seconds = (monotonic_s() - start) / batch;
      best = std::min(best, seconds);
      total += seconds * batch;
    } while (monotonic_s() < end);
    const double mean = total / static_cast<double>(calls);
    const double gops = 2e-9 * m * shape.n * shape.k / mean;
    const double gb_s = static_cast<double>(matrix_bytes) / mean * 1e-9;
    fmt::print("{:18} {:6} {:6} {:5} {:10.1f} {:10.1f} {:9.0f} {:8.1f} {:8.1f} {:8.1f}\n", shape.name,
               shape.n, shape.k, m, mean * 1e6, best * 1e6, gops, gops / peak_.int8_tops / 10, gb_s,
               100 * gb_s / peak_.read_gb_s);
    std::fflush(stdout);
  }

 private:
  void share(GemmS8Args args, int thread, const Options& options) const {
    const int threads = team_.size();
    if (args.m < options.split_rows_from) {
      const int blocks = args.n_end / kGemmNBlock;
      args.n_begin = blocks * thread / threads * kGemmNBlock;
      args.n_end = blocks * (thread + 1) / threads * kGemmNBlock;
      args.next_begin = args.n_begin;
      return gemm_s8_at(isa_, args);
    }
    const int groups = args.m / 32;
    const int begin = groups * thread / threads * 32,
              end = thread + 1 == threads ? args.m : groups * (thread + 1) / threads * 32;
    const int step = options.row_panel > 0 ? options.row_panel : end - begin;
    for (int row = begin; row < end; row += step) {
      GemmS8Args part = args;
      part.a += row * args.a_stride;
      part.a_scale += row;
      part.out += (options.reuse_out ? begin : row) * args.out_stride;
      part.m = std::min(step, end - row);
      gemm_s8_at(isa_, part);
    }
  }

  Isa isa_;
  MachinePeak peak_;
  ThreadTeam team_;
  Buffer weights_;
};

int run(const Options& options) {
  Isa isa = active_isa();
  for (const Isa candidate : supported_isas())
    if (isa_name(candidate) == options.isa) isa = candidate;
  const GrantedCpus granted = granted_cpus();
  std::vector<int> cpus = granted.cpus;
  cpus.resize(static_cast<size_t>(std::clamp(options.threads > 0 ? options.threads : granted.threads(), 1,
                                             static_cast<int>(cpus.size()))));
  const MachinePeak peak = measure_machine_peak(cpus, 0.5, isa);
  fmt::print("{}\nlevel {}, {} threads: {:.2f} INT8 TOPS, reads {:.1f} GB/s\n", cpu_model_name(),
             isa_name(isa), peak.threads, peak.int8_tops, peak.read_gb_s);
  fmt::print("{:18} {:>6} {:>6} {:>5} {:>10} {:>10} {:>9} {:>8} {:>8} {:>8}\n", "shape", "n", "k", "m",
             "mean_us", "best_us", "GOPS", "pct_peak", "GB_s", "pct_read");
  Bench bench(isa, cpus, peak);
  for (const Shape& shape : kShapes)
    if (options.shape.empty() || std::string(shape.name).find(options.shape) != std::string::npos)
      for (const int m : options.m) bench.run(shape, m, options);
  fmt::print("again: {:.2f} INT8 TOPS\n", measure_int8_tops(cpus, 0.5, isa));
  return 0;
}

}  // namespace
}  // namespace millrace::kernels

int main(int argc, char** argv) {
  millrace::kernels::Options options;
  CLI::App app("INT8 GEMM against the measured peak of this machine");
  app.add_option("--isa", options.isa, "level (default: the active one)");
  app.add_option("--threads", options.threads, "threads (default: cores granted)");
  app.add_option("--m", options.m, "row counts")->delimiter(',');
  app.add_option("--shape", options.shape, "only shapes whose name contains this");
  app.add_option("--seconds", options.seconds, "per line");
  app.add_option("--row-panel", options.row_panel, "rows of one call above 32 rows (0: all of a thread's)");
  app.add_option("--split-rows-from", options.split_rows_from, "row count from which threads split rows");
  app.add_flag("--reuse-out", options.reuse_out, "row panels of a thread share their output's place");
  app.add_flag("--hot", options.hot, "use the same weights in every call, so that caches hold what they can");
  app.add_flag("--hint", options.hint, "tell each call what the next one multiplies with");
  CLI11_PARSE(app, argc, argv);
  return millrace::kernels::run(options);
}
