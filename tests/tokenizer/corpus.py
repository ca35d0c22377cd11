"""Mixed text for tokenizer tests: deterministic, made from Unicode ranges, word lists and code; nothing is downloaded."""

import pathlib
import random
import unicodedata

SCRIPTS = {  # name: (first, last) of its letters, and whether words are put apart by spaces
    "latin": ((0x61, 0x7A), True), "latin_accents": ((0xC0, 0x24F), True), "greek": ((0x391, 0x3C9), True),
    "cyrillic": ((0x410, 0x44F), True), "hebrew": ((0x5D0, 0x5EA), True), "arabic": ((0x621, 0x64A), True),
    "devanagari": ((0x901, 0x94D), True), "bengali": ((0x981, 0x9CD), True), "tamil": ((0xB82, 0xBCD), True),
    "thai": ((0xE01, 0xE4E), False), "georgian": ((0x10D0, 0x10FA), True), "ethiopic": ((0x1200, 0x1248), True),
    "hangul": ((0xAC00, 0xD7A3), True), "jamo": ((0x1100, 0x11FF), False), "hiragana": ((0x3041, 0x3096), False),
    "katakana": ((0x30A1, 0x30FA), False), "han": ((0x4E00, 0x9FFF), False), "han_ext": ((0x20000, 0x20200), False),
    "math": ((0x1D400, 0x1D7FF), True), "full_width": ((0xFF01, 0xFF5E), True),
}
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "❤️", "🇩🇪🇯🇵", "1️⃣", "👨🏿‍🚀", "☕️", "🫠", "🧑🏻‍❤️‍💋‍🧑🏼", "©️", "🅰️", "\u200d", "\ufe0f"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n ", "\n    ", "\u00a0", "\u2003", "\u3000", "\u200b",
          "\u2028", "\u180e", "\x85", "\x0b", "\x0c", "\ufeff", " \t \t", "\n\r\n\r", "\u1680", "\x1c", "\x1f"]
WORDS = """the of and to in is that for it was on are as with they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many
then them would write like so these her long make thing see him two has look more day could go come did my sound no most
number who over know water than call first people may down side been now find any new work part take get place made
don't can't won't I'm you're they've he'd she'll it's IT'S DON'T WE'LL o'clock rock'n'roll naïve café résumé Straße
ﬁne ﬂow ſhe'ſ 'ſ Ångström Ελλάδα Привет שלום مرحبا नमस्ते வணக்கம் สวัสดี გამარჯობა ሰላም 안녕하세요 こんにちは 世界 你好 東京""".split()
NUMBERS = ["0", "7", "42", "123", "1234", "12345678901234567890", "3.14159", "1,000,000", "0x1F", "1e-5", "٣٤٥", "४२",
           "½", "Ⅷ", "²", "①", "१२३४५", "２０２６", "10:45", "+49-30-1234", "𝟘𝟙𝟚", "〇一二", "௧௨", "\U00011de1"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["...", "—", "«»", "、", "。", "！", "？", "「」", "->", "=>", "!=",
              "</s>", "<|", "|>", "```", "::", "//", "/*", "*/", "€", "™", "°", "§", "\u0301", "▁", "｜", "•", "#include"]
CODE = ["for (int i = 0; i < n; ++i) {\n\t\tsum += a[i] * b[i];\n\t}\n", "def f(x: int) -> str:\n    return f\"{x!r}\"\n",
        "<div class=\"a\">\r\n  <p>text&nbsp;</p>\r\n</div>\r\n", "SELECT * FROM t WHERE id='s' AND n>=10;\n",
        "{\"key\": [1, 2.5, null, true], \"s\": \"\\u00e9\\n\"}\n", "#!/bin/sh\nset -e\necho \"$@\" | sed 's/a/b/g'\n",
        "template <class T> auto&& get(std::vector<T>& v) noexcept { return v[0]; }\n", "x^2 + y_{i,j} = \\frac{1}{2}\n"]


def script_text(rng, name):
    (first, last), spaced = SCRIPTS[name]
    words = ["".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 9))) for _ in range(rng.randint(1, 12))]
    text = (" " if spaced else rng.choice(["", "、", " "])).join(words)
    return text.title() if rng.random() < 0.1 else text


def broken_utf8(rng):
    """Bytes that are not UTF-8, repaired as Python does."""
    data = bytearray("".join(rng.choice(WORDS) for _ in range(4)).encode())
    for _ in range(rng.randint(1, 6)):
        data.insert(rng.randint(0, len(data)), rng.choice([0x80, 0xBF, 0xC3, 0xE4, 0xED, 0xA0, 0xF0, 0x9F, 0xFF, 0xC0]))
    return bytes(data)


def any_character(rng):
    while True:
        c = rng.choice([rng.randint(0, 0x2FFF), rng.randint(0, 0xFFFF), rng.randint(0x10000, 0x1FFFF), rng.randint(0, 0x10FFFF)])
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def fragment(rng):
    kind = rng.randint(0, 11)
    if kind <= 2:
        return script_text(rng, rng.choice(list(SCRIPTS)))
    if kind <= 4:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 15)))
    if kind == 5:
        return rng.choice(NUMBERS)
    if kind == 6:
        return "".join(rng.choice(EMOJI) for _ in range(rng.randint(1, 4)))
    if kind == 7:
        return rng.choice(CODE)
    if kind == 8:
        return "".join(rng.choice(PUNCTUATION) for _ in range(rng.randint(1, 5)))
    if kind == 9:
        return "".join(any_character(rng) for _ in range(rng.randint(1, 8)))
    if kind == 10:
        return rng.choice("aA1'. \n<") * rng.randint(1, 70)
    return unicodedata.normalize("NFD", script_text(rng, rng.choice(["latin_accents", "hangul", "devanagari"])))


def mixed_texts(total_bytes, seed):
    """Texts of a few bytes to a few thousand, as bytes; about one in twenty is not valid UTF-8."""
    rng = random.Random(seed)
    texts, size = [b"", b" ", b"\n", b"a", "é".encode(), b"  a", b"a  ", b" \n\n  x", b"'", b"'s", b"'S 'Re"], 0
    while size < total_bytes:
        text = b""
        for _ in range(rng.choice([1, 2, 3, 5, 10, 40, 100])):
            piece = broken_utf8(rng) if rng.random() < 0.01 else fragment(rng).encode()
            text += piece + (rng.choice(SPACES).encode() if rng.random() < 0.5 else b"")
        texts.append(text)
        size += len(text)
    return texts


def prose_and_code(total_bytes, root):
    """Ordinary text for timing: this repository's documents and code, and the system's licences, repeated if short."""
    root = pathlib.Path(root)
    files = sorted(p for pattern in ("docs/**/*.md", "src/**/*.cc", "src/**/*.h") for p in root.glob(pattern))
    files += sorted(pathlib.Path("/usr/share/common-licenses").glob("*"))
    text = "\n".join(p.read_text(errors="replace") for p in files if p.is_file())
    while len(text) < total_bytes:
        text += text
    return text.encode()[:total_bytes].decode(errors="ignore").encode()
