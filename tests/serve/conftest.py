"""Starts the real binary, as a user would, and hands tests a client for it. Nothing here knows the server's inside."""
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
MILLRACE = Path(os.environ.get("MILLRACE_BINARY", ROOT / "build" / "release" / "millrace"))
MODEL = os.environ.get("MILLRACE_TEST_MODEL", "smollm2")
READY_TIMEOUT_S = 120  # the first start packs the model


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session", autouse=True)
def model_is_here():
    listed = subprocess.run([MILLRACE, "list", "--json"], capture_output=True, text=True, timeout=60)
    assert listed.returncode == 0, listed
    if not Path(MODEL).exists() and MODEL not in [entry["name"] for entry in json.loads(listed.stdout)]:
        pytest.skip(f"{MODEL} is not here: millrace pull {MODEL}")


class Server:
    """One `millrace serve`. stop() drains it; its log is kept for a failing test."""

    def __init__(self, log_path, *flags, env=None, model=MODEL):
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.log_path = log_path
        self.log = open(log_path, "wb")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [MILLRACE, "serve", model, "--port", str(self.port), *flags], stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log, env={**os.environ, **(env or {})})

    def wait_ready(self, timeout_s=READY_TIMEOUT_S):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"serve ended with {self.process.returncode}:\n{self.log_text()}"
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.base}/health/ready", timeout=5).status_code == 200:
                    return time.monotonic() - self.started
            time.sleep(0.01)
        raise AssertionError(f"not ready after {timeout_s} s:\n{self.log_text()}")

    def log_text(self):
        self.log.flush()
        return Path(self.log_path).read_text(errors="replace")[-4000:]

    def children(self):
        """{process id: argv} of every process below the supervisor."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                status = (entry / "status").read_text()
                parent = int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])
                if parent == self.process.pid:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")
        return found

    def groups(self):
        return [pid for pid, argv in self.children().items() if b"group-process" in argv]

    def gateway(self):
        return [pid for pid, argv in self.children().items() if b"gateway-process" in argv]

    def stop(self, timeout_s=60):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        self.log.close()
        return self.process.returncode


@contextlib.contextmanager
def serving(tmp_path, *flags, env=None, model=MODEL):
    server = Server(tmp_path / "serve.log", *flags, env=env, model=model)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture
def start(tmp_path):
    """start(*flags) -> context manager of a server of the test's own."""
    return lambda *flags, **how: serving(tmp_path, *flags, **how)


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.base, timeout=120) as client:
        yield client
