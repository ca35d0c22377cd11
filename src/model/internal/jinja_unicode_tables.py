#!/usr/bin/env python3
"""Writes jinja_unicode_tables.inc: what utf8proc does not tell about case and digits, from Python's own str methods."""
import sys

def literal(text):
    return '"' + "".join("\\x%02x" % b for b in text.encode()) + '"'

def ranges(predicate):
    out, start = [], None
    for c in range(0x110001):
        inside = c < 0x110000 and predicate(chr(c))
        if inside and start is None:
            start = c
        elif not inside and start is not None:
            out.append((start, c - 1))
            start = None
    return out

import unicodedata
out = ["// Made by jinja_unicode_tables.py with Unicode %s; do not edit." % unicodedata.unidata_version]
for name, method in (("kLongUpper", str.upper), ("kLongTitle", str.title)):
    rows = [(c, method(chr(c))) for c in range(0x110000) if len(method(chr(c))) > 1]
    out.append("constexpr LongCase %s[] = {" % name)
    out += ["    {0x%x, %s}," % (c, literal(t)) for c, t in rows]
    out.append("};")
category = unicodedata.category
for name, predicate in (
    ("kDigitNotDecimal", lambda c: c.isdigit() and category(c) != "Nd"),
    ("kNumericLetters", lambda c: c.isnumeric() and category(c)[0] != "N"),
    ("kNumbersNotNumeric", lambda c: not c.isnumeric() and category(c)[0] == "N"),
    ("kUpperNotLu", lambda c: c.isupper() and category(c) != "Lu"),
    ("kLowerNotLl", lambda c: c.islower() and category(c) != "Ll"),
):
    out.append("constexpr CodePointRange %s[] = {" % name)
    out += ["    {0x%x, 0x%x}," % r for r in ranges(predicate)] or ["    {0x110000, 0x110000},"]
    out.append("};")
open(sys.argv[1], "w").write("\n".join(out) + "\n")
