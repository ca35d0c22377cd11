#!/usr/bin/python3
"""Proof in full size that packing streams and resumes.     usage: prove_stream.py FOLDER [--keep] [--kills N]

Writes synthetic_deepseek.py's full checkpoint (11.5 GB) into FOLDER, packs it undisturbed, then again with N kills (SIGKILL, at
random moments of a journal that grows), compares the two byte for byte by their SHA-256, and prints peak resident memory (VmHWM:
mapped files count) and times. Then it opens the file and generates a few tokens. Needs 20 GB of disk; MILLRACE_BINARY names
another binary. What it wrote is removed again, the rest of FOLDER left alone. Exit status 1 if a bound is broken.
"""
import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from packing import MILLRACE, Pack
from synthetic_deepseek import write

GIB = 1 << 30
LIMIT = 2 * GIB


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and packed file there")
    parser.add_argument("--kills", type=int, default=3)
    a = parser.parse_args()
    source, one, two = a.folder / "source", a.folder / "whole.mrpack", a.folder / "resumed.mrpack"
    a.folder.mkdir(parents=True, exist_ok=True)
    wrong = []

    ours = not (source / "model.safetensors.index.json").exists()  # or kept by an earlier run
    if ours:
        start = time.monotonic()
        size = write(source)
        print(f"checkpoint: {size / 1e9:.2f} GB, written in {time.monotonic() - start:.0f} s")
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))

    whole = Pack(source, one)
    if whole.wait() != 0:
        sys.exit(whole.log())
    packed = one.stat().st_size
    print(f"undisturbed: {packed / 1e9:.2f} GB in {whole.seconds:.1f} s ({size / whole.seconds / 1e9:.2f} GB/s of checkpoint, "
          f"{packed / whole.seconds / 1e9:.2f} GB/s of packed file), peak {whole.peak_bytes / GIB:.3f} GiB")
    expected = digest(one)
    one.unlink()  # both at once would be 8 GB more

    draw, peaks, seconds = random.Random(5), [whole.peak_bytes], 0.0
    for kill in range(a.kills):
        lifetime = whole.seconds * draw.uniform(0.7, 1.1) / (a.kills + 1)
        run = Pack(source, two)
        run.wait(until=lambda: time.monotonic() - run.started > lifetime)
        if run.process.poll() is not None:
            break
        run.kill()
        peaks.append(run.peak_bytes)
        seconds += run.seconds
        print(f"killed after {run.seconds:.1f} s: {run.journal_entries()} entries in the journal, "
              f"peak {run.peak_bytes / GIB:.3f} GiB")
    run = Pack(source, two)
    if run.wait() != 0:
        sys.exit(run.log())
    peaks.append(run.peak_bytes)
    seconds += run.seconds
    print(f"finished after {run.seconds:.1f} s more, {seconds:.1f} s in all, peak {run.peak_bytes / GIB:.3f} GiB")
    print("  " + "\n  ".join(run.log().splitlines()[:4]))
    if digest(two) != expected:
        wrong.append("the resumed file differs from the undisturbed one")
    if max(peaks) > LIMIT:
        wrong.append(f"{max(peaks) / GIB:.2f} GiB resident; the bound is 2")
    start = time.monotonic()
    spoken = subprocess.run([MILLRACE, "run", two, "--max-tokens", "4", "Hello"], capture_output=True, text=True, timeout=600)
    print(f"opened, and 4 tokens generated, in {time.monotonic() - start:.1f} s: status {spoken.returncode}")
    if spoken.returncode != 0:
        wrong.append(spoken.stderr)
    if not a.keep:
        if ours:
            shutil.rmtree(source)
        for path in (two, one.with_suffix(".log"), two.with_suffix(".log")):
            path.unlink(missing_ok=True)
    print("\n".join(["BROKEN:"] + wrong) if wrong else "equal byte for byte; all bounds hold")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
