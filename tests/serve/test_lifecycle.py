"""Starts, drains, restarts, memory."""
import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
from conftest import Server


def rss_kb(pid, *fields):
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.split(":")[0] in fields)


def test_a_drain_lets_streams_finish(tmp_path):
    server = Server(tmp_path / "log")
    server.wait_ready()
    lines = []

    def consume():
        body = {"model": "smollm2", "prompt": "Once", "max_tokens": 150, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.base}/v1/completions", json=body, timeout=60) as response:
            lines.extend(line for line in response.iter_lines() if line)
    thread = threading.Thread(target=consume)
    thread.start()
    while not lines:
        time.sleep(0.01)
    assert server.stop() == 0
    thread.join(30)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"


def test_gateway_death_is_healed(start):
    with start() as server:
        os.kill(server.gateway()[0], signal.SIGKILL)
        time.sleep(0.2)
        server.wait_ready(20)
        reply = httpx.post(f"{server.base}/v1/completions", json={"model": "smollm2", "prompt": "Hi", "max_tokens": 2}, timeout=60)
        assert reply.status_code == 200


def test_no_process_outlives_the_supervisor(tmp_path):
    server = Server(tmp_path / "log")
    server.wait_ready()
    children = list(server.children())
    assert len(children) == 2
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in children):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_wrong_input_is_told_at_once(tmp_path):
    import subprocess

    from conftest import MILLRACE
    for arguments, word in ((["serve", "no-such-model"], "no-such-model"), (["serve", "--port", "99999"], "port"),
                            (["serve", str(tmp_path)], "config.json"), (["frobnicate"], "subcommand")):
        done = subprocess.run([MILLRACE, *arguments], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2, (arguments, done)
        assert word in done.stderr + done.stdout, (arguments, done)


def test_memory_is_flat_over_many_requests(server, http):
    requests = int(os.environ.get("MILLRACE_SOAK_REQUESTS", "10000"))
    pids = server.groups() + server.gateway()

    def burst(n):
        errors = []

        def worker(k):
            with httpx.Client(base_url=server.base, timeout=60) as client:
                for i in range(n // 8):
                    body = {"model": "smollm2", "prompt": f"{k} {i} hello", "max_tokens": 1}
                    if client.post("/v1/completions", json=body).status_code != 200:
                        errors.append(i)
        threads = [threading.Thread(target=worker, args=(k,)) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not errors
    def resident():
        return [rss_kb(pid, "RssAnon") for pid in pids]

    burst(requests // 5)  # caches fill
    # A group takes its KV pool's memory while it is idle: wait until it has all of it, so that what grows later is a leak.
    before, still = resident(), 0
    for _ in range(120):
        time.sleep(1)
        was, before = before, resident()
        still = still + 1 if abs(sum(before) - sum(was)) < 1024 else 0
        if still == 3:
            break
    assert still == 3, f"resident memory grows without requests: {was}, then {before} KiB"
    burst(requests)
    after = resident()
    # Before Linux 5.14 a group cannot take memory beforehand: its pool is touched page by page until it is full.
    release = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2])
    for was, now in zip(before, after):
        assert now - was < (32 * 1024 if release >= (5, 14) else 64 * 1024 + was * 0.1), (before, after)


def test_second_start_is_fast_and_groups_share_the_weights(tmp_path):
    from conftest import serving
    with serving(tmp_path):
        pass  # packs, if it was never done here
    server = Server(tmp_path / "again")
    took = server.wait_ready()
    maps = packed_pages(server)
    server.stop()
    print(f"second start to ready: {took:.2f} s")
    assert took < 10  # a bound against repacking; the figure itself belongs to bench/results
    two = Server(tmp_path / "two", "--groups", "2")
    two.wait_ready()
    httpx.post(f"{two.base}/v1/completions", json={"model": "smollm2", "prompt": ["a", "b", "c", "d"], "max_tokens": 4}, timeout=60)
    both = packed_pages(two)
    two.stop()
    assert both["anonymous_kb"] == 0 and maps["anonymous_kb"] == 0  # mapped, not copied
    assert both["resident_kb"] <= 1.15 * both["file_kb"]  # proportional share: one copy for all processes


def packed_pages(server):
    """What the packed file costs in memory: proportional set size over all processes, and private copies of it."""
    total = {"resident_kb": 0, "anonymous_kb": 0, "file_kb": 0}
    for pid in server.groups() + server.gateway():
        inside = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if line.split(" ")[0].count("-") == 1 and ":" not in line.split(" ")[0]:
                inside = line.endswith(".mrpack")
                if inside:
                    total["file_kb"] = max(total["file_kb"], os.path.getsize(line.split()[-1]) // 1024)
            elif inside and line.startswith("Pss:"):
                total["resident_kb"] += int(line.split()[1])
            elif inside and line.startswith("Private_Dirty:"):
                total["anonymous_kb"] += int(line.split()[1])
    return total
