"""What tools/synthetic_gguf writes is a checkpoint to the real binary: packed, run, with every expert in use."""
import importlib.machinery
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MILLRACE = Path(os.environ.get("MILLRACE_BINARY", ROOT / "build" / "release" / "millrace"))
TOOL = ROOT / "tools" / "synthetic_gguf"
pytestmark = pytest.mark.skipif(not MILLRACE.exists(), reason=f"{MILLRACE} is not built")


def load_tool():
    loader = importlib.machinery.SourceFileLoader("synthetic_gguf", str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("synthetic_gguf", loader))
    loader.exec_module(module)
    return module


tool = load_tool()


def tokenizer_file(path):
    """A GGUF with nothing but a byte-level tokenizer of 1,024 tokens: the alphabet, then pairs of its letters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    pairs = [a + b for a in alphabet[:40] for b in alphabet[:40]][:1024 - 256 - 2]
    tokens = [b"<|endoftext|>", b"<|im_end|>", *(text.encode() for text in [*alphabet, *pairs])]
    keys = {"general.architecture": (tool.STRING, None, "none"),
            "tokenizer.ggml.model": (tool.STRING, None, "gpt2"), "tokenizer.ggml.pre": (tool.STRING, None, "gpt-2"),
            "tokenizer.ggml.tokens": (tool.ARRAY, tool.STRING, tokens),
            "tokenizer.ggml.token_type": (tool.ARRAY, tool.I32, [3, 3] + [1] * (len(tokens) - 2)),
            "tokenizer.ggml.merges": (tool.ARRAY, tool.STRING, [f"{pair[0]} {pair[1]}" for pair in pairs]),
            "tokenizer.ggml.eos_token_id": (tool.U32, None, 0),
            "tokenizer.ggml.unknown_token_id": (tool.U32, None, 1000)}
    body = b"".join(tool.packed(tool.STRING, name) + kind.to_bytes(4, "little") + tool.packed(kind, value, element)
                    for name, (kind, element, value) in keys.items())
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + len(keys).to_bytes(8, "little") + body)
    return path


def write(tmp_path, shape, *flags):
    out = tmp_path / f"{shape}.gguf"
    done = subprocess.run([TOOL, shape, out, "--tokenizer", tokenizer_file(tmp_path / "tokenizer.gguf"), "--layers", "2",
                           "--shrink", "16", *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 of " in done.stdout and "vocabulary 5" in done.stdout
    return out


@pytest.mark.parametrize("shape", tool.SHAPES)
def test_the_binary_packs_and_runs_it(tmp_path, shape):
    out = write(tmp_path, shape)
    keys = tool.read_keys(out)
    assert keys["general.architecture"][2] == tool.SHAPES[shape]["architecture"].encode()
    tokens = set(keys["tokenizer.ggml.tokens"][2])
    assert 512 <= len(tokens) < 1024
    merges = keys["tokenizer.ggml.merges"][2]
    assert merges and all(merge.replace(b" ", b"") in tokens for merge in merges)
    assert "tokenizer.ggml.unknown_token_id" not in keys  # token 1000 was cut away
    done = subprocess.run([MILLRACE, "bench", out, "--prefill", "40", "--decode", "4", "--batch", "1,3", "--repeat", "1",
                           "--json"], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "MILLRACE_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == ["machine", "prefill", "decode", "decode"]
    assert all(line["tok_s"] > 0 and line["pct_peak_int8"] > 0 for line in lines[1:])


def test_a_seed_is_a_file(tmp_path):
    first = write(tmp_path, "qwen3-30b-a3b").read_bytes()
    assert write(tmp_path, "qwen3-30b-a3b").read_bytes() == first
    assert write(tmp_path, "qwen3-30b-a3b", "--seed", "2").read_bytes() != first
    untouched = write(tmp_path, "qwen3-30b-a3b", "--if-missing").read_bytes()
    assert untouched != first and len(untouched) == len(first)


def test_too_few_tokens_are_refused(tmp_path):
    done = subprocess.run([TOOL, "qwen3-30b-a3b", tmp_path / "out.gguf", "--tokenizer",
                           tokenizer_file(tmp_path / "tokenizer.gguf"), "--shrink", "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "1024 tokens" in done.stderr and not (tmp_path / "out.gguf").exists()
