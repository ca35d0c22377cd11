"""The command itself: what it prints, what it refuses, how `run` behaves in a pipe and on a terminal."""
import json
import os
import pty
import re
import signal
import subprocess
import time

import httpx
import pytest
from conftest import MILLRACE, MODEL, Server, free_port


def millrace(*arguments, timeout=120, **options):
    return subprocess.run([MILLRACE, *arguments], capture_output=True, text=True, timeout=timeout, **options)


def test_help_teaches_and_version_names_the_level():
    assert "serve" in millrace("--help").stdout
    for verb in ("serve", "run", "pull", "list", "rm", "pack", "bench", "eval", "doctor"):
        done = millrace(verb, "--help")
        assert done.returncode == 0 and verb in done.stdout, verb
    assert "commit" in millrace("version").stdout


def test_run_takes_a_cache_for_one_conversation_and_too_large_ones_are_refused():
    info = {**os.environ, "MILLRACE_LOG": "info"}

    def cache_mib(*flags):
        done = millrace("run", MODEL, "Hi", "--max-tokens", "1", *flags, stdin=subprocess.DEVNULL, env=info)
        assert done.returncode == 0, done
        return int(re.search(r"KV pages of \d+ tokens \((\d+) MiB\)", done.stderr).group(1))
    assert cache_mib() == cache_mib("--max-num-seqs", "1") < cache_mib("--max-num-seqs", "2")
    refused = millrace("run", MODEL, "Hi", "--kv-cache-gib", "4096", stdin=subprocess.DEVNULL)
    assert refused.returncode == 2 and "KV cache" in refused.stderr and "grants" in refused.stderr


def test_an_impossible_level_is_refused_with_what_there_is():
    done = millrace("doctor", env={**os.environ, "MILLRACE_ISA": "riscv"})
    assert done.returncode == 2 and "riscv" in done.stderr and "scalar" in done.stderr


def test_doctor_and_list_speak_json():
    doctor = json.loads(millrace("doctor", "--json", "--seconds", "0.1").stdout)
    assert doctor["cores_granted"] >= 1 and doctor["int8_tops"] > 0 and doctor["read_gb_s"] > 0
    assert doctor["active_isa"] in doctor["isas"]
    assert MODEL in [entry["name"] for entry in json.loads(millrace("list", "--json").stdout)]


def test_bench_prints_the_lines_that_tools_read():
    done = millrace("bench", MODEL, "--prefill", "64", "--decode", "8", "--batch", "1,4", "--repeat", "1", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    machine = next(line for line in lines if line["name"] == "machine")
    assert machine["int8_tops"] > 0 and machine["read_gb_s"] > 0 and machine["cpu"]
    assert [line["tokens"] for line in lines if line["name"] == "prefill"] == [64]
    assert [line["batch"] for line in lines if line["name"] == "decode"] == [1, 4]
    for line in lines:
        if line["name"] == "prefill":
            assert line["tok_s"] > 0 and line["pct_peak_int8"] > 0
        if line["name"] == "decode":
            assert line["tok_s"] > 0 and line["pct_read_bw"] > 0


def test_eval_reports_both_forms(tmp_path):
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 30)
    result = json.loads(millrace("eval", MODEL, "--text", text, "--window", "128", "--json").stdout)
    assert result["tokens"] > 100 and result["perplexity"] > 1 and result["reference_perplexity"] > 1
    assert 0 <= result["kl_mean_nats"] < 0.1 and 0.5 < result["top1_agreement"] <= 1


def test_run_answers_an_argument_and_a_pipe_alike():
    question = "What is the capital of France?"
    argument = millrace("run", MODEL, question, "--temperature", "0", "--max-tokens", "64", stdin=subprocess.DEVNULL)
    piped = millrace("run", MODEL, "--temperature", "0", "--max-tokens", "64", input=question + "\n")
    assert argument.returncode == 0 and "Paris" in argument.stdout
    assert piped.stdout == argument.stdout
    seeded = [millrace("run", MODEL, question, "--seed", "5", "--temperature", "1", "--max-tokens", "64",
                       stdin=subprocess.DEVNULL).stdout for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_run_on_a_terminal_survives_ctrl_c():
    parent, child = pty.openpty()
    process = subprocess.Popen([MILLRACE, "run", MODEL, "--temperature", "0", "--max-tokens", "2000"], stdin=child, stdout=child, stderr=child,
                               start_new_session=True)
    os.close(child)
    seen = b""

    def read_until(words, timeout_s=60):
        nonlocal seen
        deadline = time.monotonic() + timeout_s
        os.set_blocking(parent, False)
        while words not in seen:
            assert time.monotonic() < deadline, seen
            try:
                seen += os.read(parent, 65536)
            except BlockingIOError:
                time.sleep(0.02)
        seen = seen[seen.index(words) + len(words):]
    read_until(b">>> ")
    os.write(parent, b"Write a very long story about a river.\n")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)  # ends the reply
    read_until(b">>> ")
    process.send_signal(signal.SIGINT)  # at the prompt: says how to leave
    read_until(b"/bye")
    os.write(parent, b"What is the capital of France?\n")
    read_until(b">>> ")
    os.write(parent, b"/bye\n")
    assert process.wait(20) == 0
    os.close(parent)


def test_flags_come_from_a_yaml_file_too(tmp_path):
    port = free_port()
    config = tmp_path / "serve.yaml"
    config.write_text(f"port: {port}\nserved-model-name: [first, second]\nmax-model-len: 256\n")
    server = Server(tmp_path / "log", "--config", str(config))
    try:
        server.base, server.port = f"http://127.0.0.1:{server.port}", server.port  # the command line wins over the file
        server.wait_ready()
        models = httpx.get(f"{server.base}/v1/models").json()["data"]
        assert [m["id"] for m in models] == ["first", "second"]
        assert models[0]["max_model_len"] == 256
    finally:
        server.stop()
    config.write_text("no-such-flag: 1\n")
    done = millrace("serve", MODEL, "--config", config)
    assert done.returncode == 2 and "no-such-flag" in done.stderr


@pytest.mark.parametrize("arguments,words", [
    (["serve", "--api-key", "K", "no-such-model"], "no-such-model"),  # the key does not swallow the model
    (["serve", "no-such-model.gguf"], "no-such-model.gguf"),
    (["bench", MODEL, "--batch", "0"], "batch"),
    (["eval", MODEL, "--text", "/no/such/file"], "/no/such/file"),
    (["run", MODEL, "--dtype", "int3"], "dtype"),
    (["rm", "smollm9"], "smollm9"),
])
def test_wrong_input_is_named(arguments, words):
    done = millrace(*arguments, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, done
    assert words in done.stderr
