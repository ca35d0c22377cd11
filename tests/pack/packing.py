"""Runs `millrace pack` and watches its memory. Shared by the quick test and the full-size proof."""
import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MILLRACE = Path(os.environ.get("MILLRACE_BINARY", ROOT / "build" / "release" / "millrace"))


class Pack:
    """One `millrace pack`. peak_bytes is VmHWM: the most that was resident at once, mapped files included."""

    def __init__(self, source, output, *flags):
        self.output = Path(output)
        self.started = time.monotonic()
        self.log_path = self.output.with_suffix(".log")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([MILLRACE, "pack", str(source), "-o", str(output), *flags],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.peak_bytes = 0

    def sample(self):
        """False once the process has ended."""
        try:
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)
        except OSError:
            pass
        return self.process.poll() is None

    def wait(self, timeout_s=3600, until=lambda: False):
        """Until it ends, or until() holds. The process is killed at the deadline."""
        deadline = time.monotonic() + timeout_s
        while self.sample() and not until():
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"no end after {timeout_s} s: {self.log()}")
            time.sleep(0.005)
        self.seconds = time.monotonic() - self.started
        return self.process.poll()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait()

    def journal_entries(self):
        journal = self.output.with_name(self.output.name + ".journal")
        try:
            return max(0, (journal.stat().st_size - 32) // 24)
        except FileNotFoundError:  # not begun, or just finished
            return 0

    def log(self):
        return self.log_path.read_text(errors="replace")
