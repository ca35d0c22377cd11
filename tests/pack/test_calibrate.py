"""`millrace pack --calibrate FILE` from outside: whose file the other verbs take, what is refused, and that a killed run's
successor ends with the same bytes."""
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from packing import MILLRACE, ROOT

MODEL = ROOT / "tests" / "models" / "tiny-deepseek-v3"
HELDOUT = (MODEL / "heldout.txt").read_text()
SANITIZED = any(word in str(MILLRACE) for word in ("asan", "tsan"))


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "text.txt").write_text(HELDOUT[-60_000:])
    (tmp_path / "judge.txt").write_text(HELDOUT[:20_000])
    return tmp_path


def millrace(home, *arguments, status=0):
    done = subprocess.run([MILLRACE, *map(str, arguments)], capture_output=True, text=True, timeout=600, cwd=home,
                          env={**os.environ, "MILLRACE_HOME": str(home / "home")})
    assert done.returncode == status, done.stderr[-2000:]
    return done


def packed_path(done):
    return Path(done.stdout.split(" (")[0].strip())


def taken(home, *flags):
    """The calibrated file that a verb which runs MODEL takes; None: the plain one."""
    said = millrace(home, "run", MODEL, "The", "--max-tokens", 1, *flags).stderr
    named = re.search(r"the calibrated form (\S+)", said)
    return Path(named[1]) if named else None


def packed_files(home):
    return sorted(path.name for path in (home / "home" / "packed").iterdir())


def test_the_calibrated_file_is_taken_until_it_is_declined(home):
    plain = packed_path(millrace(home, "pack", MODEL))
    before = plain.read_bytes()
    calibrated = packed_path(millrace(home, "pack", MODEL, "--calibrate", "text.txt"))
    assert calibrated != plain and calibrated.parent == plain.parent
    assert calibrated.name.startswith(plain.name.removesuffix(".mrpack") + ".calibrated2-")
    assert calibrated.stat().st_size == len(before) and calibrated.read_bytes() != before
    assert plain.read_bytes() == before, "the plain file is left alone"
    assert packed_files(home) == sorted([plain.name, calibrated.name]), "nothing else is left"

    assert taken(home) == calibrated and taken(home, "--no-calibrated") is None
    for flags in [], ["--no-calibrated"]:
        bare = millrace(home, "pack", MODEL, *flags)
        assert packed_path(bare) == plain and "calibrated form" not in bare.stderr, "pack makes what it is asked for"
    torn = millrace(home, "pack", MODEL, "--calibrate", "text.txt", "--no-calibrated", status=2).stderr
    assert "--calibrate" in torn and "--no-calibrated" in torn and "give one of them" in torn
    # One that an earlier version of calibration made is not taken.
    old = calibrated.with_name(calibrated.name.replace(".calibrated2-", ".calibrated1-"))
    calibrated.rename(old)
    assert taken(home) is None
    old.rename(calibrated)
    # The same text again: found, not made.
    stamp = calibrated.stat().st_ino
    assert packed_path(millrace(home, "pack", MODEL, "--calibrate", "text.txt")) == calibrated
    assert calibrated.stat().st_ino == stamp

    costs = [json.loads(millrace(home, "eval", MODEL, "--text", "judge.txt", "--json", *flags).stdout)
             for flags in ([], ["--no-calibrated"])]
    assert costs[0]["kl_mean_nats"] != costs[1]["kl_mean_nats"], "eval takes the one and the other"
    assert all(0 < cost["kl_mean_nats"] < 0.008 for cost in costs)

    # Another text makes another file, which is then the one; the first comes back when it is asked for.
    (home / "other.txt").write_text(HELDOUT[60_000:90_000])
    other = packed_path(millrace(home, "pack", MODEL, "--calibrate", "other.txt"))
    assert other not in (plain, calibrated)
    assert taken(home) == other
    time.sleep(0.05)
    millrace(home, "pack", MODEL, "--calibrate", "text.txt")
    assert taken(home) == calibrated
    # A packed file is itself, whatever was calibrated.
    assert packed_path(millrace(home, "pack", plain)) == plain
    refused = millrace(home, "eval", plain, "--text", "judge.txt", status=2).stderr
    assert "name the checkpoint" in refused


def test_texts_that_say_too_little_are_refused_by_name_value_and_limit(home):
    (home / "empty.txt").write_text("")
    (home / "short.txt").write_text("Too short a text. " * 20)  # 100 to 200 tokens
    (home / "latin1.txt").write_bytes(b"gr\xfc\xdfe " * 500)
    for name, words in {"missing.txt": ["missing.txt", "does not exist"],
                        "empty.txt": ["empty.txt", "0 bytes"],
                        "short.txt": ["short.txt", "tokens", "at least 512"],
                        "latin1.txt": ["latin1.txt", "not UTF-8", "0xfc", "offset 2 "]}.items():
        start = time.monotonic()
        refused = millrace(home, "pack", MODEL, "--calibrate", name, status=2).stderr
        assert all(word in refused for word in words), refused
        assert time.monotonic() - start < (2 if not SANITIZED else 30), "before any work"
        assert not (home / "home" / "packed").exists()
    assert "float32" in millrace(home, "pack", MODEL, "--calibrate", "text.txt", "--dtype", "float32", status=2).stderr
    plain = packed_path(millrace(home, "pack", MODEL))
    assert "packed already" in millrace(home, "pack", plain, "--calibrate", "text.txt", status=2).stderr
    (home / "folder").mkdir()
    assert "folder is a folder" in millrace(home, "pack", MODEL, "--calibrate", "text.txt", "-o", "folder", status=2).stderr
    assert packed_files(home) == [plain.name], "no calibrated file came of it"


def test_a_killed_run_is_continued(home):
    plain = packed_path(millrace(home, "pack", MODEL))
    whole = packed_path(millrace(home, "pack", MODEL, "--calibrate", "text.txt"))
    expected = whole.read_bytes()
    whole.unlink()
    journal = whole.with_name(whole.name + ".journal")
    command = [MILLRACE, "pack", str(MODEL), "--calibrate", str(home / "text.txt")]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           env={**os.environ, "MILLRACE_HOME": str(home / "home")})
    deadline = time.monotonic() + 300
    while run.poll() is None and not (journal.exists() and journal.stat().st_size > 32 + 24 * 100):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    if not whole.exists():  # else it was faster than the signal
        # Weeks later, when the plain file has been cleaned away: packing that again must not clean this away too.
        weeks_ago = time.time() - 20 * 24 * 3600
        os.utime(whole.with_name(whole.name + ".partial"), (weeks_ago, weeks_ago))
        plain.unlink()
        done = millrace(home, "pack", MODEL, "--calibrate", "text.txt")
        assert re.search("calibrated.*checking the", done.stderr), "it found what the killed one left"
    assert whole.read_bytes() == expected
    assert len(packed_files(home)) == 2


def test_output_goes_where_it_is_wanted(home):
    done = millrace(home, "pack", MODEL, "--calibrate", "text.txt", "-o", "mine.mrpack")
    assert packed_path(done) == Path("mine.mrpack") and (home / "mine.mrpack").exists()
    assert len(packed_files(home)) == 1, "the plain one, which reads the text"
    shutil.copy(home / "mine.mrpack", home / "copy.mrpack")
    assert "copy.mrpack" in millrace(home, "pack", "copy.mrpack").stdout
