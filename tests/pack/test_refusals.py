"""`millrace pack` refuses damaged checkpoints: the table of src/model/fixtures/refusals.h through the real binary."""
import json
import os
import resource
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("MILLRACE_BUILD", ROOT / "build" / "release"))
MILLRACE = Path(os.environ.get("MILLRACE_BINARY", BUILD / "millrace"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    driver = BUILD / "tests" / "write_refusals"
    if not driver.exists():
        pytest.skip(f"{driver} is not built (tools/build, target write_refusals)")
    run = subprocess.run([driver, tmp_path_factory.mktemp("refusals")], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_damaged_checkpoints_are_refused_by_name_within_a_second(cases, tmp_path):
    packed = 0
    for case in cases:
        output = tmp_path / case["name"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([MILLRACE, "pack", case["path"], "-o", output], capture_output=True, text=True, timeout=60,
                              env={**os.environ, "MILLRACE_HOME": str(tmp_path / "home")})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of the processor: others may be busy
        assert seconds < 1, (case["name"], seconds)
        if not case["words"]:
            assert done.returncode == 0 and output.exists(), (case["name"], done.stderr)
            packed += 1
            continue
        assert done.returncode != 0 and not output.exists(), case["name"]
        for word in case["words"]:
            assert word in done.stderr, (case["name"], word, done.stderr)
    assert packed >= 5 and len(cases) - packed >= 60
    print(f"{len(cases) - packed} refused, {packed} packed")
