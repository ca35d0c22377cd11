"""Packing a checkpoint that is larger than the memory it may use: DeepSeek-V3's shape, FP8, with its MTP layer's copies of
embedding and head, scaled down to seconds. prove_stream.py does the same in full size."""
import hashlib
import os
import subprocess
import time

import pytest
from packing import MILLRACE, Pack
from synthetic_deepseek import write

MIB = 1 << 20
SANITIZED = any(word in str(MILLRACE) for word in ("asan", "tsan"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    size = write(folder, "small")
    assert size > 200 * MIB
    return folder


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_memory_stays_below_the_checkpoint_and_kills_change_nothing(source, tmp_path):
    whole = Pack(source, tmp_path / "whole.mrpack")
    assert whole.wait(300) == 0, whole.log()
    size = (tmp_path / "whole.mrpack").stat().st_size
    # Two jobs of 22 MiB each a thread at most, the tokenizer twice, the program. Were the mapped source or the output
    # to stay resident, it would be some 300 MiB more.
    if not SANITIZED:
        threads = len(os.sched_getaffinity(0))
        assert whole.peak_bytes < (100 + 24 * threads) * MIB, f"{whole.peak_bytes / MIB:.0f} MiB with {threads} threads"
    assert "tensors" in whole.log() and "100 %" in whole.log()

    killed_at = []
    for entries in (3, 150, 10**9):
        run = Pack(source, tmp_path / "resumed.mrpack")
        ended = run.wait(300, until=lambda: run.journal_entries() >= entries)
        if ended is not None:
            assert ended == 0, run.log()
            break
        assert run.kill() == -9
        killed_at.append(run.journal_entries())
        assert not run.output.exists()
    assert len(killed_at) == 2 and killed_at[1] > killed_at[0], killed_at
    assert "checking the" in run.log(), "the last run found what the others left"
    assert run.output.stat().st_size == size
    assert digest(run.output) == digest(tmp_path / "whole.mrpack")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".log") == ["resumed.mrpack", "whole.mrpack"]


def test_what_disagrees_is_refused_within_a_second(source, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in source.iterdir():
        os.link(path, broken / path.name)
    config = (source / "config.json").read_text()

    def refusal():
        start = time.monotonic()
        done = subprocess.run([MILLRACE, "pack", broken, "-o", tmp_path / "out.mrpack"], capture_output=True, text=True,
                              timeout=60)
        seconds = time.monotonic() - start
        assert done.returncode != 0
        assert seconds < (1 if not SANITIZED else 20), f"{seconds:.1f} s"
        assert not list(tmp_path.glob("out.mrpack*"))
        return done.stderr

    (broken / "config.json").unlink()
    (broken / "config.json").write_text(config.replace('"intermediate_size": 2304', '"intermediate_size": 2305'))
    assert "[2304, 1024]" in (text := refusal()) and "[2305, 1024]" in text
    (broken / "config.json").write_text(config.replace('"n_routed_experts": 32', '"n_routed_experts": 48'))
    assert "tensor" in refusal()
    (broken / "config.json").write_text(config.replace("deepseek_v3", "deepseek_v9"))
    assert "deepseek_v9" in refusal()
