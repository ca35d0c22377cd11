"""Latent attention, experts and guessing ahead, through the real binary: replies are those of serving without guesses,
with one group or two, on other instruction sets, and over kill -9."""
import asyncio
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from conftest import MILLRACE, serving

MODEL = str(Path(__file__).resolve().parents[2] / "tests" / "models" / "tiny-deepseek-v3")
STREAMS, TOKENS, SECONDS = 12, 2500, 12
PROMPTS = ["The Linux kernel", "If the file does not exist,", "In Python,", "The server", "A hacker is", "When a query"]


@pytest.fixture(scope="session", autouse=True)
def model_is_here():
    """In place of conftest's, which asks for SmolLM2: this model is a part of the repository."""
    assert Path(MODEL).is_dir()


def body(i, tokens=TOKENS):
    return {"model": MODEL, "prompt": PROMPTS[i % len(PROMPTS)], "temperature": 0 if i % 2 == 0 else 0.6, "seed": i,
            "max_tokens": tokens, "ignore_eos": True, "logprobs": 1}


async def ask(client, i, tokens=TOKENS):
    reply = await client.post("/v1/completions", json=body(i, tokens))
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    return choice["text"], choice["finish_reason"], choice["logprobs"]["token_logprobs"]


def accepted(server):
    text = httpx.get(f"{server.base}/metrics", timeout=30).text
    found = re.search(r"^millrace_spec_decode_accepted_tokens_total\{.*\} (\S+)", text, re.M)
    return float(found.group(1)) if found else 0


async def ask_all(server, tokens=TOKENS):
    async with httpx.AsyncClient(base_url=server.base, timeout=300) as client:
        return await asyncio.gather(*(ask(client, i, tokens) for i in range(STREAMS)))


def test_guesses_change_no_reply(start):
    with start("--num-speculative-tokens", "0", model=MODEL) as server:
        calm = asyncio.run(ask_all(server))
        assert accepted(server) == 0
    assert all(finish == "length" for _, finish, _ in calm)

    async def kill_while_asking(server):
        end, kills = time.monotonic() + SECONDS, 0

        async def killer():
            nonlocal kills
            while time.monotonic() < end:
                await asyncio.sleep(1.5)
                victims = server.groups()
                if victims:
                    os.kill(victims[kills % len(victims)], signal.SIGKILL)
                    kills += 1

        async def worker(client, i):
            rounds = 0
            while time.monotonic() < end or rounds == 0:
                assert await ask(client, i) == calm[i], f"reply {i} differs"
                rounds += 1
            return rounds

        async with httpx.AsyncClient(base_url=server.base, timeout=300) as client:
            results = await asyncio.gather(killer(), *(worker(client, i) for i in range(STREAMS)))
        assert kills >= 3
        print(f"{kills} kills, {sum(results[1:])} replies, all equal")

    with start("--always-speculate", "--num-speculative-tokens", "4", "--groups", "2", model=MODEL) as server:
        assert asyncio.run(ask_all(server)) == calm
        assert accepted(server) > STREAMS * TOKENS / 5
        asyncio.run(kill_while_asking(server))


@pytest.fixture(scope="module")
def scalar_replies(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("scalar"), "--always-speculate", model=MODEL, env={"MILLRACE_ISA": "scalar"}) as server:
        return asyncio.run(ask_all(server, 120))


@pytest.mark.parametrize("isa,flags", [("avx2", []), ("avx512", ["--always-speculate"])])
def test_instruction_sets_agree(start, scalar_replies, isa, flags):
    doctor = subprocess.run([MILLRACE, "doctor", "--json", "--seconds", "0.05"], capture_output=True, text=True, timeout=60)
    if isa not in json.loads(doctor.stdout)["isas"]:
        pytest.skip(f"this machine has no {isa}")
    with start(*flags, model=MODEL, env={"MILLRACE_ISA": isa}) as server:
        assert asyncio.run(ask_all(server, 120)) == scalar_replies
