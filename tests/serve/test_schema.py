"""Schema-driven fuzz of /openapi.json with schemathesis: no 5xx, no undocumented status, every answer as described."""
import os
import subprocess
import sys

EXAMPLES = os.environ.get("MILLRACE_SCHEMA_EXAMPLES", "20")


def test_schemathesis(start, tmp_path):
    # A short context: most generated requests leave max_tokens out, which means "fill the context".
    with start("--max-model-len", "128") as server:
        done = subprocess.run(
            [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run", f"{server.base}/openapi.json", "--url",
             server.base, "--max-examples", EXAMPLES, "--request-timeout", "60", "--seed", "1", "--workers", "1", "--checks",
             "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance", "--no-color"],
            capture_output=True, text=True, timeout=500, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " passed" in done.stdout, done.stdout
        print(done.stdout[-600:])
