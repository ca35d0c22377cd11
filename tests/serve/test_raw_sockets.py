"""What a library would not send: halves, stalls, disconnects, garbage. The others' streams must not notice."""
import json
import re
import socket
import threading
import time

BODY = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 400,
        "temperature": 0, "ignore_eos": True, "stream": True}


def connect(server):
    s = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    return s


def request(path, body, **headers):
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(data)}",
             *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def read_response(s):
    """One whole non-chunked response: (status, body)."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = s.recv(65536)
        if not got:
            return None, data
        data += got
    head, body = data.split(b"\r\n\r\n", 1)
    length = int(re.search(rb"content-length: (\d+)", head.lower()).group(1))
    while len(body) < length:
        body += s.recv(65536)
    return int(head.split()[1]), body


def metric(http, name):
    total = 0.0
    for line in http.get("/metrics").text.splitlines():
        if line.startswith(name) and line[len(name)] in "{ ":
            total += float(line.rsplit(" ", 1)[1])
    return total


def wait_until(condition, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_garbage_gets_400_or_a_closed_connection(server):
    for garbage in (b"\x00\xff\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/models HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                    b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", b"A" * 100000 + b"\r\n\r\n"):
        with connect(server) as s:
            s.sendall(garbage)
            data = s.recv(65536)
            assert data == b"" or re.match(rb"HTTP/1\.[01] (400|405|413|414|431|505)", data), (garbage[:40], data[:80])


def test_bodies_that_are_not_requests(server):
    for body in (b"", b"{", b"[]", b"null", b'"x"', b'{"model": "smollm2"}', b"\xff\xfe", b"[" * 100000,
                 b'{"model":"smollm2","messages":[{"role":"user","content":"\\ud800"}]}'):
        with connect(server) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            status, reply = read_response(s)
            assert status == 400, (body[:40], status)
            assert json.loads(reply)["error"]["message"]


def test_too_large_a_body_is_413(server):
    with connect(server) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n")
        status, reply = read_response(s)
        assert status == 413
        assert json.loads(reply)["error"]["message"]


def test_keep_alive_and_pipelining(server):
    with connect(server) as s:
        small = {"model": "smollm2", "prompt": "Hi", "max_tokens": 1}
        s.sendall(request("/v1/completions", small) + request("/v1/completions", small) + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while data.count(b"HTTP/1.1 200") < 3:
            got = s.recv(65536)
            assert got, data
            data += got


def test_chunked_request_body(server):
    data = json.dumps({"model": "smollm2", "prompt": "Hi", "max_tokens": 1}).encode()
    with connect(server) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(0, len(data), 7):
            piece = data[i:i + 7]
            s.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        s.sendall(b"0\r\n\r\n")
        assert read_response(s)[0] == 200


def test_disconnect_frees_the_request_at_once(server, http):
    assert wait_until(lambda: metric(http, "vllm:num_requests_running") == 0)
    for stream in (True, False):
        s = connect(server)
        s.sendall(request("/v1/chat/completions", {**BODY, "max_tokens": 5000, "stream": stream}))
        assert wait_until(lambda: metric(http, "vllm:num_requests_running") == 1)
        s.close()
        assert wait_until(lambda: metric(http, "vllm:num_requests_running") == 0, 5), f"stream={stream}"


def test_idle_halves_and_slow_readers_do_not_touch_a_stream(server, http):
    def reply():
        with connect(server) as s:
            s.sendall(request("/v1/chat/completions", {**BODY, "max_tokens": 60, "stream": False}))
            status, body = read_response(s)
            assert status == 200
            return json.loads(body)["choices"][0]["message"]["content"]
    undisturbed = reply()
    idle = [connect(server) for _ in range(200)]
    halves = [connect(server) for _ in range(20)]
    for i, s in enumerate(halves):
        s.sendall(request("/v1/chat/completions", BODY)[: 10 + 9 * i])
    slow = [connect(server) for _ in range(4)]
    for s in slow:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(request("/v1/chat/completions", {**BODY, "max_tokens": 300}))
    results = []
    threads = [threading.Thread(target=lambda: results.append(reply())) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert results == [undisturbed] * 4
    for s in idle + halves + slow:
        s.close()
    assert wait_until(lambda: metric(http, "vllm:num_requests_running") == 0)


def test_unknown_paths_and_methods(http):
    assert http.get("/nowhere").status_code == 404
    assert http.get("/nowhere").json()["error"]["message"]
    wrong = http.delete("/v1/models")
    assert wrong.status_code == 405 and "GET" in wrong.headers["allow"]
    assert http.get("/health").status_code == 200
    assert http.get("/health/live").status_code == 200
    assert http.get("/version").json()["version"]
    assert http.get("/openapi.json").json()["openapi"].startswith("3.")
    assert "<html" in http.get("/").text.lower()
