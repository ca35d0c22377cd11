#include "apps/models.h"

#include <fmt/core.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <filesystem>
#include <initializer_list>

#include "apps/progress.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/file.h"
#include "base/units.h"
#include "engine/calibrate.h"
#include "hub/hub.h"

namespace millrace::apps {
namespace {

std::atomic<bool> stop_asked{false};

// Ctrl-C ends a pull in order (pip goes too, locks are released); a second one ends it at once.
void catch_stop() {
  struct sigaction action {};
  action.sa_handler = [](int) { stop_asked.store(true, std::memory_order_relaxed); };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

std::string_view type_name(model::PackType type) { return type == model::PackType::int8 ? "int8" : "float32"; }

// "12 of 203 tensors, 1.2 GB of 7.6 GB, 310.4 MB/s, 21 s left  layers.0.ffn.down"
std::string describe(const model::PackProgress& p, double packing_s) {
  using Stage = model::PackProgress::Stage;
  if (p.stage == Stage::waiting) return fmt::format("waiting: {}", p.what);
  if (p.stage == Stage::checking)
    return fmt::format("checking the {} that an earlier run left", human_bytes(p.bytes_done));
  std::string text = fmt::format("{} of {} tensors, {} of {}", p.tensors_done, p.tensors_total,
                                 human_bytes(p.bytes_done), human_bytes(p.bytes_total));
  if (packing_s > 0.5 && p.bytes_done > p.bytes_found && p.bytes_done < p.bytes_total) {
    const double rate = static_cast<double>(p.bytes_done - p.bytes_found) / packing_s;
    text += fmt::format(", {}/s, {} left", human_bytes(static_cast<uint64_t>(rate)),
                        human_duration(static_cast<double>(p.bytes_total - p.bytes_done) / rate));
  }
  return fmt::format("{}  {}", text, p.what);
}

// Some thousand tokens of the text are read, from all over it.
constexpr size_t kMaxTextBytes = 256 * kMiB;

Expected<void> pack_to(const std::filesystem::path& checkpoint, const std::filesystem::path& packed,
                       model::PackType type, const std::string& name,
                       const model::CalibrationInputs* calibration = nullptr) {
  std::error_code error;
  std::filesystem::create_directories(packed.parent_path(), error);
  ProgressBar bar(fmt::format("packing {} ({}{})", name, type_name(type), calibration != nullptr ? ", calibrated" : ""));
  model::PackOptions options{.type = type, .threads = granted_cpus().threads(), .progress = {}, .calibration = calibration};
  double packing_since_s = 0;
  options.progress = [&](const model::PackProgress& p) {
    if (packing_since_s == 0 && p.stage == model::PackProgress::Stage::packing)
      packing_since_s = monotonic_s();
    bar.update(p.fraction(), describe(p, packing_since_s > 0 ? monotonic_s() - packing_since_s : 0));
  };
  return model::pack_checkpoint(checkpoint, packed, options);
}

// A pack that was killed and never taken up again: its checkpoint has another name in the cache by now, or is
// gone. Those about to be made are spared.
void remove_forgotten_packs(const std::filesystem::path& folder, std::initializer_list<std::filesystem::path> spared) {
  constexpr auto kForgotten = std::chrono::hours(24 * 7);
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    std::filesystem::path path = it->path();
    std::error_code ignored;
    const auto touched = it->last_write_time(ignored);
    if (ignored || path.extension() != ".partial" || std::filesystem::file_time_type::clock::now() - touched < kForgotten)
      continue;
    if (std::ranges::find(spared, path.replace_extension()) == spared.end()) model::remove_unfinished_pack(path);
  }
}

}  // namespace

Expected<model::PackType> pack_type_of(const std::string& dtype) {
  if (dtype == "auto" || dtype == "int8") return model::PackType::int8;
  if (dtype == "float32" || dtype == "float") return model::PackType::float32;
  return invalid(fmt::format("--dtype {} is not there: auto (INT8 weights and activations) or float32", dtype), "dtype");
}

Expected<std::string> ensure_packed(const ModelFlags& flags) {
  if (flags.model.ends_with(".mrpack")) return flags.model;
  const auto type = MR_TRY(pack_type_of(flags.dtype));
  const auto checkpoint = MR_TRY(hub::resolve(flags.model));
  const auto name = MR_TRY(model::packed_file_name(checkpoint, type));
  const auto packed = hub::packed_folder() / name;
  std::error_code error;
  if (type == model::PackType::int8 && flags.calibrated) {
    const auto calibrated = model::calibrated_files(packed);
    if (!calibrated.empty() && calibrated[0].usable) {
      fmt::print(stderr, "{}: the calibrated form {} (--no-calibrated: the plain one)\n", flags.model,
                 calibrated[0].path.string());
      return calibrated[0].path.string();
    }
  }
  if (!std::filesystem::exists(packed, error)) {
    remove_forgotten_packs(packed.parent_path(), {packed});
    MR_TRY(pack_to(checkpoint, packed, type, flags.model));
  }
  return packed.string();
}

Expected<std::shared_ptr<const model::PackedModel>> open_model(const ModelFlags& flags) {
  const auto packed = MR_TRY(ensure_packed(flags));
  return model::PackedModel::open(packed);
}

namespace {

// What is wrong with the text is said of the file.
template <class T>
Expected<T> naming_the_text(const PackFlags& flags, Expected<T> done) {
  if (!done && done.error().param == "calibrate")
    done.error().message = fmt::format("{}: {}", flags.calibrate, done.error().message);
  return done;
}

// The text is looked at before the hours of work that may follow.
Expected<std::string> pack_calibrated(const PackFlags& flags) {
  const std::string& name = flags.model.model;
  if (!flags.model.calibrated)
    return invalid("--calibrate makes the calibrated file and --no-calibrated asks for the plain one: give one of them",
                   "calibrate");
  if (name.ends_with(".mrpack"))
    return invalid(fmt::format("--calibrate packs a checkpoint; {} is packed already", name), "calibrate");
  const auto type = MR_TRY(pack_type_of(flags.model.dtype));
  if (type != model::PackType::int8) return invalid("--calibrate is for INT8; --dtype float32 rounds nothing", "calibrate");
  std::error_code error;
  if (std::filesystem::is_directory(flags.output, error))
    return invalid(fmt::format("{} is a folder; a file is to be written there", flags.output), "output");
  std::string text = MR_TRY(read_file(flags.calibrate, kMaxTextBytes));
  MR_TRY(naming_the_text(flags, engine::check_calibration_text(text)));
  const auto checkpoint = MR_TRY(hub::resolve(name));
  const auto plain_name = MR_TRY(model::packed_file_name(checkpoint, type));
  std::filesystem::path packed = flags.output;
  if (flags.output.empty()) {
    packed = hub::packed_folder() / model::calibrated_file_name(plain_name, engine::calibration_digest(text));
    if (std::filesystem::exists(packed, error)) {
      // The one asked for last is the one that is served.
      std::filesystem::last_write_time(packed, std::filesystem::file_time_type::clock::now(), error);
      if (error)
        return fail(Code::unavailable, fmt::format("{} is there, but cannot be made the one that is served: {}",
                                                   packed.string(), error.message()));
      return packed.string();
    }
  }
  {
    const auto facts = MR_TRY(model::checkpoint_facts(checkpoint));
    MR_TRY(naming_the_text(flags, engine::check_calibration_tokens(text, facts.tokenizer, facts.config)));
  }
  const auto plain = hub::packed_folder() / plain_name;
  remove_forgotten_packs(plain.parent_path(), {plain, packed});
  if (!std::filesystem::exists(plain, error)) MR_TRY(pack_to(checkpoint, plain, type, name));
  auto model = MR_TRY(model::PackedModel::open(plain));
  const auto folder = std::filesystem::absolute(packed).parent_path();
  std::filesystem::create_directories(folder, error);
  auto inputs = MR_TRY(naming_the_text(flags, [&] {
    ProgressBar bar(fmt::format("reading {} with {}", std::filesystem::path(flags.calibrate).filename().string(), name));
    engine::CalibrateOptions options;
    options.cpus = engine_options({}).cpus;
    options.progress = [&](int64_t done, int64_t total) {
      bar.update(static_cast<double>(done) / static_cast<double>(total), fmt::format("{} of {} tokens", done, total));
    };
    return engine::gather_inputs(std::move(model), text, folder, options);  // packing does not hold it mapped
  }()));
  std::string().swap(text);  // as much as 256 MiB of the 2 GiB that packing may hold
  MR_TRY(pack_to(checkpoint, packed, type, name, inputs.get()));
  return packed.string();
}

}  // namespace

int run_pull(const std::string& model, bool if_missing) {
  const auto here = hub::resolve(model);
  if (here) {
    if (!if_missing) fmt::print("{} is here: {}\n", model, here->string());
    return 0;
  }
  const double start_s = monotonic_s();
  catch_stop();
  const auto pulled = [&] {
    ProgressBar bar("fetching " + model);
    return hub::pull(model, [&](const hub::PullProgress& p) {
      const auto done = std::min(p.bytes_done, p.bytes_total);
      bar.update(p.bytes_total > 0 ? static_cast<double>(done) / static_cast<double>(p.bytes_total) : 0.0,
                 p.bytes_total > 0 ? fmt::format("{} of {}  {}", human_bytes(done), human_bytes(p.bytes_total), p.what)
                                   : fmt::format("{}  {}", human_bytes(p.bytes_done), p.what));
      return !stop_asked.load(std::memory_order_relaxed);
    });
  }();
  if (!pulled && pulled.error().code == Code::cancelled) {
    fmt::print(stderr, "millrace: stopped before {} was here; pull it again when you like\n", model);
    return 130;  // the shell's number for a Ctrl-C
  }
  if (!pulled) return report(pulled.error());
  fmt::print("{} is ready: {} ({:.0f} s)\n", model, pulled->string(), monotonic_s() - start_s);
  return 0;
}

int run_list(bool as_json) {
  const auto models = hub::list();
  const auto packed_bytes = [](const hub::ModelInfo& model) {
    uint64_t total = 0;
    for (const auto& file : model.packed) total += file.bytes;
    return total;
  };
  if (as_json) {
    boost::json::array out;
    for (const auto& model : models)
      out.push_back(boost::json::object{{"name", model.name},
                                        {"checkpoint", model.path.string()},
                                        {"size_bytes", model.bytes},
                                        {"packed_bytes", packed_bytes(model)}});
    fmt::print("{}\n", boost::json::serialize(out));
    return 0;
  }
  if (models.empty()) {
    fmt::print("No models here yet. `millrace pull NAME` fetches one:\n");
    for (const auto& entry : hub::catalogue()) fmt::print("  {:<12} {}\n", entry.name, entry.description);
    return 0;
  }
  fmt::print("{:<28} {:>10} {:>10}  {}\n", "NAME", "SIZE", "PACKED", "CHECKPOINT");
  for (const auto& model : models)
    fmt::print("{:<28} {:>10} {:>10}  {}\n", model.name, human_bytes(model.bytes),
               model.packed.empty() ? "-" : human_bytes(packed_bytes(model)), model.path.string());
  return 0;
}

int run_rm(const std::vector<std::string>& models) {
  int status = 0;
  for (const auto& model : models) {
    if (const auto removed = hub::remove(model)) {
      fmt::print("removed {}\n", model);
    } else {
      status = report(removed.error());
    }
  }
  return status;
}

int run_pack(const PackFlags& flags) {
  const auto done = [&]() -> Expected<std::string> {
    if (!flags.calibrate.empty()) return pack_calibrated(flags);
    if (flags.output.empty()) {
      ModelFlags plain = flags.model;
      plain.calibrated = false;
      return ensure_packed(plain);
    }
    const auto type = MR_TRY(pack_type_of(flags.model.dtype));
    const auto checkpoint = MR_TRY(hub::resolve(flags.model.model));
    MR_TRY(pack_to(checkpoint, flags.output, type, flags.model.model));
    return flags.output;
  }();
  if (!done) return report(done.error());
  std::error_code error;
  fmt::print("{} ({})\n", *done, human_bytes(std::filesystem::file_size(*done, error)));
  return 0;
}

}  // namespace millrace::apps
