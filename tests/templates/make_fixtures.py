#!/usr/bin/env python3
"""Writes tests/fixtures/templates/language.jsonl: the corpus's templates with what jinja2 makes of them.

First line: the context. Then {"template": ..., "text": ...} or {"template": ..., "error": true}. Run after changing
corpus.py, with the jinja2 of tests/requirements.txt.
"""
import json
import pathlib
import re

import corpus
import oracle

out = pathlib.Path(__file__).parent.parent / "fixtures" / "templates" / "language.jsonl"
lines = [json.dumps({"context": corpus.CONTEXT}, ensure_ascii=False)]
for template, context in corpus.cases():
    text, error = oracle.render(template, context)
    if text is not None and re.search(r" at 0x[0-9a-f]+", text):
        continue  # an address: nobody can equal it
    lines.append(json.dumps({"template": template, **({"error": True} if error else {"text": text})}, ensure_ascii=False))
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text("\n".join(lines) + "\n")
print(len(lines) - 1, "cases,", sum('"error"' in line for line in lines), "of them errors")
