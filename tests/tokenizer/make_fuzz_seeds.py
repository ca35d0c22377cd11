"""Writes starting inputs of the tokenizer's fuzz targets to tests/fuzz/corpus/: the fixtures, cut down to a few merges."""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent


def small(document):
    """The vocabulary without most of its merges, so that an input is a few kB."""
    model = document["model"]
    model["merges"] = model["merges"][:12]
    added = {t["content"] for t in document["added_tokens"]}
    parts = {p for a, b in model["merges"] for p in (a, b, a + b)}
    model["vocab"] = {t: i for t, i in model["vocab"].items() if t in parts or t in added or (len(t) == 1 and i < 60)}
    return document


def main():
    folder = HERE.parent / "fuzz" / "corpus" / "tokenizer_json_fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    text = "He'll say <think> 123 é日 e\u0301 \U0001f600\r\n".encode()
    for path in sorted((HERE / "fixtures").glob("*.json")):
        document = small(json.loads(path.read_text()))
        data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        (folder / path.stem).write_bytes(struct.pack("<H", len(text)) + text + data)


main()
