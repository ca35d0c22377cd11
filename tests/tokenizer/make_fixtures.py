"""Writes tests/tokenizer/fixtures/: tiny vocabularies (trained here) and what the `tokenizers` package makes of some texts,
for the C++ unit tests. Run with the package of tests/requirements.txt:  python3 tests/tokenizer/make_fixtures.py

NAME.json is a tokenizer.json; NAME.cases holds one case a line: parse_special (0, 1, or * where both give the same), the
text in hex, ids, the decoded text in hex (= where it is the text); separated by tabs."""

import pathlib
import random

import corpus
import vocabularies

TEXTS = ["Hello world! I'm here, they'll come; WE'VE gone 'S 'ſ.", "naïve café Straße ſ ﬁ", "  two  spaces\t\ttab\n\n \n x \r\n",
         "12345 1,234.5 ٣٤٥ ½ Ⅷ ２０２６ \U00011de1", "你好,世界。東京タワー ひらがな 한국어 नमस्ते สวัสดี", "👩‍👩‍👧‍👦👍🏽🏳️‍🌈 e\u0301 각 A\u030a",
         "<|bos|>a<|im_end|> <think> x </tool>  y <tool>whole wholes é日 e\u0301日", "for (int i=0;i<n;++i){\n\t\treturn a[i]!=b;\n}\n",
         "\u0958\u0301\u0323a\u0323\u0301 \u1161\u1100\u1161\u11a8 \u0898\u0301", "", " ", "\n", "a", "'", "▁x ▁ y", "a" * 300, " " * 200 + "x",
         "\x85\u2028\u180e\u200b\ufeff\x1c\x00\x7f", "<s>hi</s> ünknöwn ✓ 🤖"]


def main():
    folder = pathlib.Path(__file__).parent / "fixtures"
    folder.mkdir(exist_ok=True)
    rng = random.Random(1)
    texts = [t.encode() for t in TEXTS] + [corpus.broken_utf8(rng) for _ in range(6)] + [t for t in corpus.mixed_texts(150000, 3)[11:] if len(t) < 150][:40]
    made = {name: vocabularies.train(name, 420) for name in ("gpt2_prefix", "smollm", "llama3", "qwen2", "deepseek_v3",
                                                             "merged_next", "general_regex")}
    made |= {f"sentencepiece_{style}": vocabularies.train_sentencepiece(style, 700) for style in ("legacy", "first")}
    for name, tokenizer in made.items():
        (folder / f"{name}.json").write_text(tokenizer.to_str(pretty=False) + "\n")
        lines = []
        for text in texts:
            ids = []
            for parse_special in (False, True):
                tokenizer.encode_special_tokens = not parse_special
                ids.append(tokenizer.encode(text.decode(errors="replace")).ids)
            for flag, values in [("*", ids[0])] if ids[0] == ids[1] else [("0", ids[0]), ("1", ids[1])]:
                decoded = tokenizer.decode(values, skip_special_tokens=True).encode()
                shown = "=" if decoded == text else decoded.hex()
                lines.append("\t".join([flag, text.hex(), " ".join(map(str, values)), shown]))
        (folder / f"{name}.cases").write_text("\n".join(lines) + "\n")


main()
