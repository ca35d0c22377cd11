"""Small templates over small contexts that together walk the language; jinja2 says what each must give.

A case is (template, context). test_templates.py compares all of them with jinja2; make_fixtures.py writes what jinja2
says to tests/fixtures/templates/language.jsonl, which the C++ unit test checks without Python.
"""

CONTEXT = {
    "s": "Hello, World",
    "u": "héllo ß 日本語 ǅ 😀",
    "e": "",
    "sp": "  a b\t c \n",
    "q": "it's \"quoted\" \\ \n\t\x01\x7f\u2028\xa0",
    "html": "<a href='x'>1 & 2</a>",
    "n": 7,
    "neg": -7,
    "z": 0,
    "big": 9007199254740993,
    "huge": 18446744073709551615,
    "f": 2.5,
    "tiny": 1e-07,
    "large": 1e22,
    "t": True,
    "no": False,
    "nil": None,
    "l": [3, 1, 2],
    "ls": ["b", "A", "c", "a"],
    "mixed": [1, "x", None, 2.0, [1, [2]], {"k": "v"}, True],
    "empty": [],
    "d": {"b": 1, "a": 2, "C": 3},
    "deep": {"x": {"y": [{"z": "found"}]}, "items": "shadow", "0": "zero"},
    "users": [
        {"name": "Ann", "age": 30, "city": "Bern", "tags": ["x"]},
        {"name": "bob", "age": 25, "city": "bern", "tags": []},
        {"name": "Cid", "age": 30, "city": "Genf"},
    ],
    "tree": [{"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3, "kids": [{"v": 4, "kids": []}]}]}, {"v": 5, "kids": []}],
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
}

TEMPLATES = []


def add(text):
    TEMPLATES.extend(line for line in text.strip("\n").split("\n") if line.strip())


def one(text):
    TEMPLATES.append(text)


# Expressions --------------------------------------------------------------------------------------------------------
for value in ["s", "u", "e", "q", "n", "neg", "big", "huge", "f", "tiny", "large", "t", "nil", "l", "mixed", "empty", "d", "deep"]:
    one("{{ %s }}" % value)
    one("{{ [%s] }}" % value)
    one("{{ %s|tojson }}" % value)
    one("{{ %s|tojson(indent=2) }}|{{ %s|tojson(ensure_ascii=true, sort_keys=true) }}" % (value, value))
    one("{{ %s|length }}" % value)
    one("{{ %s|string|length }}" % value)
    one("{{ %s is string }},{{ %s is number }},{{ %s is mapping }},{{ %s is sequence }},{{ %s is iterable }},{{ %s is none }}" % ((value,) * 6))
    one("{{ %s is integer }},{{ %s is float }},{{ %s is boolean }},{{ %s is true }},{{ %s is callable }},{{ %s is defined }}" % ((value,) * 6))
    one("{{ not %s }},{{ 'y' if %s else 'n' }},{{ %s or 'other' }},{{ %s and 'other' }}" % ((value,) * 4))
    one("{{ %s|int }}" % value)
    one("{{ %s|float }}" % value)
    one("{{ %s|list }}" % value)
    one("{{ %s|first }};{{ %s|last }}" % (value, value))
    one("{{ %s|upper }};{{ %s|lower }};{{ %s|title }};{{ %s|capitalize }}" % ((value,) * 4))
    one("{{ '%%s %%r' %% (%s, %s) }}" % (value, value))
    one("{{ '{} {!r}'.format(%s, %s) }}" % (value, value))
    one("{{ %s == %s }},{{ %s != 1 }},{{ %s in [%s] }}" % ((value,) * 5))
    one("{{ %s|default('D') }},{{ %s|default('D', true) }}" % (value, value))
    one("{{ %s|pprint }}" % value)
    one("{{ %s|urlencode }}" % value)
    one("{{ %s|escape }}" % value)
    one("{{ %s[0] }}" % value)
    one("{{ %s[-1] }}" % value)
    one("{{ %s[1:] }}" % value)
    one("{{ %s.x }}" % value)
    one("{{ %s ~ 'x' ~ %s }}" % (value, value))
    one("{{ %s + 1 }}" % value)
    one("{{ %s * 2 }}" % value)
    one("{{ %s|join('-') }}" % value)
    one("{{ %s|reverse|list }}" % value)
    one("{{ %s|sort }}" % value)
    one("{{ %s|max }} {{ %s|min }}" % (value, value))
    one("{{ %s|sum }}" % value)
    one("{{ %s|unique|list }}" % value)
    one("{{ %s|batch(2)|list }}{{ %s|slice(2)|list }}" % (value, value))
    one("{% for x in " + value + " %}{{ loop.index }}:{{ x }};{% else %}none{% endfor %}")
    one("{{ %s|replace('l', 'L') }}{{ %s|trim }}{{ %s|wordcount }}{{ %s|center(20) }}" % ((value,) * 4))
    one("{{ %s|items|list }}" % value)
    one("{{ %s|dictsort }}" % value)
    one("{{ %s|indent }}{{ %s|truncate(5) }}" % (value, value))

add(r"""
{{ 1 + 2 * 3 - 4 / 2 }}
{{ 7 // 2 }},{{ -7 // 2 }},{{ 7 // -2 }},{{ 7 % 3 }},{{ -7 % 3 }},{{ 7 % -3 }}
{{ 7.5 // 2 }},{{ -7.5 // 2 }},{{ 7.5 % 2 }},{{ -7.5 % 2 }},{{ 7.5 % -2 }}
{{ 2 ** 10 }},{{ 2 ** -1 }},{{ 2 ** 0.5 }},{{ -2 ** 2 }},{{ 2 ** 3 ** 2 }},{{ 2 ** 62 }},{{ (-1) ** 3 }}
{{ 1 / 3 }},{{ 10 / 2 }},{{ 1e3 }},{{ 1.5e-3 }},{{ 100000000000000000.0 }},{{ 0.1 + 0.2 }},{{ 1e16 }},{{ 123456789012345.6 }}
{{ 1_000 }},{{ 0x1F }},{{ 0b101 }},{{ 0o17 }},{{ 1_0.5_0 }},{{ 00 }}
{{ -5 }},{{ +5 }},{{ --5 }},{{ -n|abs }},{{ (-n)|abs }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1.0 % 0 }}
{{ true + true }},{{ true * 3 }},{{ false == 0 }},{{ true == 1.0 }},{{ 1 == 1.0 }},{{ '1' == 1 }}
{{ 1 < 2 < 3 }},{{ 1 < 3 < 2 }},{{ 1 == 1 != 2 }},{{ 'a' < 'b' }},{{ [1,2] < [1,3] }},{{ (1,) < (1,2) }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ 'a' in 'abc' }},{{ 'x' not in 'abc' }},{{ 1 in [1,2] }},{{ 'a' in d }},{{ 3 in range(5) }},{{ 'z' in nothing }}
{{ 1 in 'abc' }}
{{ not true }},{{ not not 1 }},{{ not 1 == 2 }},{{ true and false or true }}
{{ 'a' if false }}|{{ 'a' if true else 'b' if true else 'c' }}|{{ ('a' if false) is defined }}
{{ 'a' 'b' "c" }}
{{ 'a' + 'b' }}{{ 'a' ~ 1 ~ none ~ true ~ 1.0 }}{{ 1 ~ 2 + 3 }}
{{ 'ab' * 3 }},{{ 3 * 'ab' }},{{ [1] * 2 }},{{ (1,) * 2 }},{{ 'a' * -1 }}
{{ 'a' + 1 }}
{{ 1 + none }}
{{ [1] + [2] }},{{ (1,) + (2,) }}
{{ [1] + (2,) }}
{{ "\n\t\\\'\"\x41\u00e9\U0001F600\101\q" }}
{{ [1, 'a', none, true, 1.5, (1,), (), [], {}] }}
{{ {'a': 1, 2: 'b', none: [], (1,2): 3, 1.5: 0} }}
{{ {'a': 1, 'a': 2} }},{{ {1: 'a', 1.0: 'b', true: 'c'} }}
{{ {[1]: 2} }}
{{ (1) }},{{ (1,) }},{{ () }},{{ 1, 2 }}
{{ s[0] }}{{ s[-1] }}{{ s[1:4] }}{{ s[::-1] }}{{ s[::2] }}{{ s[-3:] }}{{ s[:100] }}{{ s[5:2] }}{{ s[10:0:-3] }}
{{ u[1] }}{{ u[6:9] }}{{ u|length }}{{ u[::-1] }}{{ u.find('日') }}{{ u.index('😀') }}
{{ l[0] }}{{ l[-1] }}{{ l[5] }}{{ l[1:] }}{{ l[::-1] }}{{ l[:-1] }}{{ l['x'] }}{{ l.0 }}{{ l[true] }}
{{ l[::0] }}
{{ l[1.0] }}{{ s[none] }}
{{ d['a'] }}{{ d.a }}{{ d.zzz }}{{ d['zzz'] is defined }}{{ d.get('a') }}{{ d.get('q') }}{{ d.get('q', 5) }}
{{ deep.x.y[0].z }}{{ deep['x']['y'][0]['z'] }}{{ deep.items is callable }}{{ deep['items'] }}{{ deep.0 }}{{ deep['0'] }}
{{ deep.nope.nope }}
{{ nothing }}|{{ nothing is defined }}|{{ nothing is undefined }}|{{ nothing == other }}|{{ nothing == none }}|{{ nothing|list }}|{{ nothing|length }}
{{ nothing.x }}
{{ nothing['x'] }}
{{ nothing() }}
{{ nothing + 1 }}
{{ -nothing }}
{{ nothing < 1 }}
{{ nothing ~ 'x' }}|{{ [nothing] }}|{{ nothing|string }}|{{ nothing|join }}|{% for x in nothing %}{% else %}E{% endfor %}
{{ nothing|int }}
{{ nothing|tojson }}
{{ none.x }}|{{ none.x is defined }}|{{ none['x'] is defined }}
{{ none.x.y }}
{{ 'a'.b.c }}
{{ s.upper() }}{{ s.lower() }}{{ s.title() }}{{ s.swapcase() }}{{ s.capitalize() }}{{ s.casefold() }}
{{ u.upper() }}|{{ u.lower() }}|{{ u.title() }}|{{ u.capitalize() }}|{{ u.swapcase() }}|{{ u.casefold() }}
{{ 'ΑΣ ΑΣΑ'.lower() }}|{{ 'ﬁ ŉ ǰ'.upper() }}|{{ 'İ'.lower() }}|{{ 'ﬁx'.title() }}
{{ "they're bill's o'neil-x"|title }}|{{ "they're bill's".title() }}|{{ '(a [b {c <d -e'|title }}
{{ sp.strip() }}|{{ sp.lstrip() }}|{{ sp.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xyaxy'.lstrip('yx') }}|{{ 'abc'.rstrip('') }}|{{ s.strip(none) }}
{{ 'a,b,,c'.split(',') }}{{ 'a,b,,c'.split(',', 1) }}{{ 'a,b,,c'.rsplit(',', 1) }}{{ ' a  b '.split() }}{{ ' a  b c '.split(none, 1) }}{{ ' a  b c '.rsplit(none, 1) }}{{ ''.split() }}{{ ''.split(',') }}
{{ 'a'.split('') }}
{{ 'a\nb\r\nc\x0bd\u2028e'.splitlines() }}{{ 'a\nb\n'.splitlines(true) }}{{ ''.splitlines() }}
{{ 'a-b-c'.partition('-') }}{{ 'a-b-c'.rpartition('-') }}{{ 'abc'.partition('-') }}{{ 'abc'.rpartition('-') }}
{{ s.startswith('He') }}{{ s.startswith(('x', 'H')) }}{{ s.endswith('ld') }}{{ s.startswith('e', 1) }}{{ s.endswith('H', 0, 1) }}{{ ''.startswith('', 1) }}
{{ s.find('o') }}{{ s.find('o', 5) }}{{ s.rfind('o') }}{{ s.find('zz') }}{{ s.index('W') }}{{ s.count('l') }}{{ s.count('') }}{{ s.count('l', 3, 5) }}{{ s.find('', 99) }}
{{ s.index('zz') }}
{{ s.replace('l', 'LL') }}{{ s.replace('l', '', 1) }}{{ 'abc'.replace('', '-') }}{{ 'abc'.replace('', '-', 2) }}{{ ''.replace('', 'x') }}
{{ '-'.join(['a', 'b']) }}{{ ''.join(ls) }}{{ ','.join('abc') }}{{ '-'.join(d) }}
{{ '-'.join([1]) }}
{{ 'a'.center(6, '*') }}{{ 'ab'.center(7) }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '0') }}|{{ '-5'.zfill(5) }}{{ '5'.zfill(1) }}{{ 'ab'.center(5, '*') }}{{ 'a'.center(4,'*') }}
{{ 'abc'.isalpha() }}{{ 'ab1'.isalnum() }}{{ '12'.isdigit() }}{{ '²'.isdigit() }}{{ '½'.isnumeric() }}{{ '²'.isdecimal() }}{{ ' '.isspace() }}{{ 'Ab Cd'.istitle() }}{{ 'aB'.islower() }}{{ 'AB'.isupper() }}{{ 'a b'.isidentifier() }}{{ 'é'.isascii() }}{{ '\n'.isprintable() }}{{ ''.isalpha() }}
{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.txt'.removesuffix('.txt') }}{{ 'a\tb'.expandtabs(4) }}
{{ d.items() }}{{ d.keys() }}{{ d.values() }}{{ d.items()|list }}{{ d.keys()|list }}{{ d|list }}{{ d.items()|length }}
{{ l.index(1) }}{{ l.count(3) }}{{ (1,2,1).count(1) }}{{ (1,2).index(2) }}{{ range(5).index(3) }}
{{ l.index(9) }}
{{ l.append(4) }}
{{ d.update({'x': 1}) }}
{{ d.pop('a') }}
{{ l.append is defined }}{{ d.pop is defined }}{{ l.append }}
{{ ''.__class__ }}|{{ ''.__class__.__mro__ }}
{{ (5).bit_length() }}{{ (2.0).is_integer() }}
{{ '%s-%d-%5.2f-%x-%X-%o-%e-%g-%c-%%' % ('a', 3.9, 3.14159, 255, 255, 8, 12345.678, 0.0001, 'z') }}
{{ '%5s|%-5s|%05d|%+d|% d|%.2s|%#x|%r' % ('a', 'b', 42, 5, 5, 'abc', 255, 'q') }}
{{ '%(a)s %(b)d' % {'a': 1, 'b': 2} }}{{ '%s' % 'x' }}{{ '%s' % [1] }}{{ '%*d' % (5, 3) }}{{ '%.*f' % (2, 1.5) }}
{{ '%d' % 'a' }}
{{ '%s %s' % ('a',) }}
{{ '%s' % ('a', 'b') }}
{{ '%q' % 1 }}
{{ '%s %s'|format('a', 1) }}{{ '%(x)s'|format(x=2) }}{{ 'none'|format }}
{{ '{} {}'.format(1, 'a') }}{{ '{1} {0} {x}'.format(1, 2, x=3) }}{{ '{{}}'.format() }}{{ '{0[a]} {1.x}'.format(d, {'x': 1}) }}
{{ '{:>5}|{:<5}|{:^5}|{:*^7}|{:05d}|{:+d}|{:,}|{:_}|{:.2f}|{:.1%}|{:x}|{:#b}|{:e}|{:g}|{:10.3}'.format('a','b','c','d',42,5,1234567,1234567,3.14159,0.5,255,5,12345.678,0.0001,3.14159) }}
{{ '{:{}}|{!s:>4}|{:c}|{:n}|{:08,}|{:=+6}'.format('a', 3, 1, 65, 5, 1234, 5) }}
{{ '{:.3}|{:.0f}|{:10}|{:<10}|{:G}|{:.3g}|{:}|{:z<4}'.format(1234.5, 2.5, 1.5, 1.5, 1e20, 1234.5, 1.0, 'a') }}
{{ '{} {0}'.format(1) }}
{{ '{}'.format() }}
{{ '{:d}'.format('a') }}
{{ '{'.format(1) }}
{{ range(5)|list }}{{ range(1, 10, 3)|list }}{{ range(5, 0, -2)|list }}{{ range(3) }}{{ range(0, 6, 2) }}{{ range(5)[1] }}{{ range(10)[2:5] }}{{ range(0)|list }}
{{ range(200000) }}
{{ range(1, 2, 0) }}
{{ dict(a=1, b=2) }}{{ dict({'x': 1}, y=2) }}{{ dict([('a', 1)]) }}
{{ namespace(a=1).a }}{% set ns = namespace(x=1) %}{% set ns.y = 2 %}{{ ns.x + ns.y }}{{ ns.z is defined }}{{ ns }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{% set x = c.reset() %}{{ c.current }}
{% set j = joiner() %}{{ j() }}a{{ j() }}b{{ j() }}c{% set k = joiner('|') %}{{ k() }}{{ k() }}
{{ raise_exception('stop ' ~ n) }}
{{ 'x' is filter }}{{ 'upper' is filter }}{{ 'odd' is test }}{{ 'nope' is test }}
{{ 'x'|nofilter }}
{{ 1 is notest }}
{{ n is odd }}{{ n is even }}{{ n is divisibleby 7 }}{{ n is divisibleby(3) }}{{ n is not odd }}{{ n is gt 5 }}{{ n is eq(7) }}{{ n is in [7] }}{{ n is sameas 7 }}{{ none is sameas none }}
{{ 'abc' is lower }}{{ 'ABC' is upper }}{{ n is lt 8 }}{{ n is ge 7 }}{{ n is le 6 }}{{ n is ne 7 }}{{ 'a' is equalto 'a' }}{{ s is escaped }}{{ (s|e) is escaped }}
{{ 'a' is odd }}
{{ 3.0 is odd }}{{ 2.5 is number }}{{ true is number }}{{ true is integer }}{{ (1,) is sequence }}{{ d.items() is sequence }}{{ range(3) is sequence }}{{ range is callable }}
{{ 'x' is string and 1 is number or false }}{{ 1 is not none }}{{ not 1 is none }}
""")

# Filters ------------------------------------------------------------------------------------------------------------
add(r"""
{{ ls|sort }}{{ ls|sort(reverse=true) }}{{ ls|sort(case_sensitive=true) }}{{ l|sort(true) }}
{{ users|sort(attribute='age')|map(attribute='name')|list }}{{ users|sort(attribute='age,name', reverse=true)|map(attribute='name')|join(',') }}
{{ [1, 'a']|sort }}
{{ users|map(attribute='tags.0')|list }}{{ users|map(attribute='tags', default='-')|list }}{{ ls|map('upper')|join }}{{ ls|map('replace', 'a', 'z')|list }}{{ l|map('string')|join('+') }}
{{ users|selectattr('tags')|map(attribute='name')|list }}{{ users|rejectattr('age', 'eq', 30)|map(attribute='name')|list }}{{ users|selectattr('city', 'equalto', 'Bern')|list|length }}{{ users|selectattr('tags', 'defined')|list|length }}
{{ [0,1,2,none,'']|select|list }}{{ [0,1,2,3]|select('odd')|list }}{{ [0,1,2,3]|reject('odd')|list }}{{ [1,2,3]|select('gt', 1)|list }}{{ [1,2,3]|select('>=', 2)|list }}{{ [0,1]|reject|list }}
{{ users|groupby('age') }}{% for g in users|groupby('city') %}{{ g.grouper }}:{{ g.list|length }};{% endfor %}{% for k, v in users|groupby('city', case_sensitive=true) %}{{ k }}{{ v|map(attribute='name')|list }}{% endfor %}
{{ users|groupby('tags', default='none') }}
{{ users|sum(attribute='age') }}{{ [1,2.5]|sum }}{{ []|sum }}{{ [[1],[2]]|sum(start=[]) }}{{ [1]|sum(start=10) }}
{{ users|max(attribute='age') }}{{ ls|min }}{{ ls|max(case_sensitive=true) }}{{ []|max }}{{ 'bca'|max }}
{{ ['a','A','b']|unique|list }}{{ ['a','A']|unique(true)|list }}{{ users|unique(attribute='age')|map(attribute='name')|list }}
{{ range(7)|batch(3)|list }}{{ range(7)|batch(3, 'x')|list }}{{ range(7)|slice(3)|list }}{{ range(7)|slice(3, 'x')|list }}{{ []|batch(2)|list }}
{{ d|dictsort }}{{ d|dictsort(true) }}{{ d|dictsort(by='value') }}{{ d|dictsort(reverse=true) }}
{{ 2.5|round }}{{ 3.5|round }}{{ 2.675|round(2) }}{{ 42.55|round(1, 'floor') }}{{ 42.51|round(0, 'ceil') }}{{ 1234|round(-2) }}{{ 1250|round(-2) }}{{ 7|round }}{{ 7|round(2) }}{{ -2.5|round }}{{ 1.005|round(2) }}{{ 15|round(-1, 'ceil') }}
{{ '42'|int }}{{ '42.9'|int }}{{ 'x'|int }}{{ 'x'|int(5) }}{{ 'ff'|int(0, 16) }}{{ '0x1f'|int(0, 16) }}{{ '0b11'|int(0, 2) }}{{ ' 12 '|int }}{{ '1_000'|int }}{{ -3.9|int }}{{ true|int }}{{ none|int(1) }}{{ [1]|int }}{{ '1e3'|int }}{{ 'inf'|int }}
{{ '4.5'|float }}{{ 'x'|float }}{{ 'x'|float(1.5) }}{{ '1e5'|float }}{{ 'nan'|float }}{{ '-inf'|float }}{{ 3|float }}{{ '.5'|float }}{{ '5.'|float }}{{ '1_0'|float }}{{ '0x1'|float }}
{{ -3|abs }}{{ -2.5|abs }}{{ true|abs }}
{{ 'x'|abs }}
{{ 1|filesizeformat }},{{ 999|filesizeformat }},{{ 1000|filesizeformat }},{{ 1500000|filesizeformat }},{{ 1024|filesizeformat(true) }},{{ '5e12'|filesizeformat }},{{ 1e30|filesizeformat }}
{{ 'a b'|wordcount }}{{ 'a-b c_d'|wordcount }}{{ ''|wordcount }}
{{ 'foo bar baz qux'|truncate(9) }}|{{ 'foo bar baz qux'|truncate(9, true) }}|{{ 'foo bar baz qux'|truncate(11) }}|{{ 'foo bar baz qux'|truncate(11, false, '…', 0) }}
{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}|{{ 'a\nb'|indent('> ') }}|{{ ''|indent }}|{{ 'a\n'|indent }}
{{ 'the quick brown fox jumps over the lazy dog'|wordwrap(10) }}|{{ 'averyveryverylongword x'|wordwrap(6) }}|{{ 'averyverylong x'|wordwrap(6, false) }}|{{ 'well-known half-open'|wordwrap(7) }}|{{ 'a  b\n\nc'|wordwrap(3, wrapstring='/') }}|{{ 'semi-automatic--dash x-y'|wordwrap(8) }}
{{ html|e }}|{{ html|escape|e }}|{{ html|forceescape }}|{{ html|safe }}|{{ html|striptags }}|{{ '<b>&amp; x</b> <!-- c -->  y'|striptags }}
{{ ('<a>'|e) + '<b>' }}|{{ '<b>' + ('<a>'|e) }}|{{ ('<a>'|safe) ~ '<b>' }}|{{ ('<%s>'|safe) % '<x>' }}|{{ ('<a>'|e)|upper }}|{{ ('<a>'|e)|length }}|{{ [('x'|e)] }}
{{ {'a': 1, 'b': none, 'c': '<'}|xmlattr }}|{{ {'a': 1}|xmlattr(false) }}
{{ {'a b': 1}|xmlattr }}
{{ 'a b/c?d=é'|urlencode }}|{{ {'a b': 'c/d', 'x': 1}|urlencode }}|{{ [('k', 'v w')]|urlencode }}
{{ ls|join(', ') }}|{{ users|join(', ', attribute='name') }}|{{ [1, none, true]|join('|') }}|{{ 'abc'|join('.') }}|{{ d|join }}|{{ l|join(1) }}
{{ 'abc'|reverse }}{{ l|reverse|list }}{{ range(3)|reverse|list }}{{ d|reverse|list }}{{ (1,2)|reverse|join }}
{{ 'xax'|trim('x') }}|{{ sp|trim }}|{{ 5|trim }}
{{ 'aXbX'|replace('X', '-') }}|{{ 'aXbX'|replace('X', '-', 1) }}|{{ 121|replace(1, 3) }}
{{ d|attr('a') is defined }}{{ d|attr('keys') is defined }}{{ ns|attr('x') is defined }}{{ 'a'|attr('upper') is callable }}
{{ 'a'|first }}{{ []|first is defined }}{{ ''|last is defined }}{{ d|first }}{{ d.items()|first }}{{ d|last }}
{{ l|select|last }}
{{ l|select|length }}
{{ l|map('string')|first }}{% set g = l|map('string') %}{{ g|first }}{{ g|list }}{{ g|list }}
{{ [1,[2,{'a':(1,2)}]]|tojson }}{{ d|tojson(separators=(',', ':')) }}{{ d|tojson(indent=1) }}{{ [[], {}]|tojson(indent=2) }}{{ d|tojson(true) }}{{ {'é': 'é'}|tojson(ensure_ascii=true) }}{{ '<&>'|tojson }}{{ d|tojson(indent='..') }}
{{ {1: 1, none: 2, true: 3, 1.5: 4}|tojson }}{{ (1, 2)|tojson }}{{ 1e400|tojson }}{{ u|tojson(ensure_ascii=true) }}{{ '\x7f\x1f'|tojson(ensure_ascii=true) }}
{{ range(3)|tojson }}
{{ d.items()|tojson }}
{{ {(1,2): 3}|tojson }}
{{ mixed|tojson(indent=4) }}
{{ ['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', {'x': [1,2,3], 'k': 'cccccccccccccccccccccccccccccccc'}]|pprint }}
{{ s|d('x') }}{{ nothing|d }}{{ nothing|d(1) }}{{ none|d('x') }}{{ none|d('x', true) }}{{ nothing.a|d }}
{{ s|upper|lower|title|replace('o', '0')|length }}
{{ s | upper }}{{ s|  upper|lower  }}{{ (s|upper) ~ (s|lower) }}{{ s|upper ~ 'x' }}{{ 1 + '2'|int }}{{ '%s' % n|string }}
{{ 'abc'|center(9) }}|{{ 'abc'|center }}|{{ 'abcd'|center(9) }}
{{ s|upper() }}{{ s|replace(old='l', new='r') }}
{{ s|upper(1) }}
{{ s|replace }}
{{ s|replace('a', bogus=1) }}
{{ d|count }}{{ [1,2]|count }}
{{ '1,2'.split(',')|map('int')|sum }}{{ ['1','x']|map('int', default=-1)|list }}{{ [1.5,2.5]|map('round', method='floor')|list }}
""")

# Statements ---------------------------------------------------------------------------------------------------------
add(r"""
{% if n > 5 %}a{% elif n > 3 %}b{% else %}c{% endif %}{% if z %}x{% elif no %}y{% else %}z{% endif %}{% if nothing %}x{% endif %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}
{% for x in l %}{{ loop.previtem|default('-') }}<{{ x }}>{{ loop.nextitem|default('-') }}{{ loop.cycle('odd', 'even') }}{{ loop.changed(x > 1) }};{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for x in l if x > 1 %}{{ x }}{{ loop.index }}/{{ loop.length }}{{ loop.last }};{% endfor %}{% for x in l if x > 9 %}{% else %}nothing{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{% for y in ls %}{{ loop.index }}{% if loop.last %}|{% endif %}{% endfor %}{{ loop.index }};{% endfor %}
{% for x in l %}{% set outer = loop %}{% for y in 'ab' %}{{ outer.index }}{{ loop.index }}{{ y }} {% endfor %}{% endfor %}
{% for node in tree recursive %}{{ node.v }}@{{ loop.depth }}{% if node.kids %}({{ loop(node.kids) }}){% endif %}{% if not loop.last %},{% endif %}{% endfor %}
{% for x in l %}{{ loop(x) }}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{% endfor %}
{% for a, b in [(1,)] %}{% endfor %}
{% for x in 'héy' %}{{ x }}.{% endfor %}{% for x in (1, 2) %}{{ x }}{% endfor %}{% for x in 1, 2, 3 %}{{ x }}{% endfor %}
{% set x = 1 %}{% for i in l %}{{ x }}{% set x = x + i %}{{ x }};{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% for i in [1] %}{% if false %}{% set x = 9 %}{% endif %}{{ x }}{% endfor %}
{% set ns = namespace(n=0, l=[]) %}{% for i in l %}{% set ns.n = ns.n + i %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.n }}{{ ns.l }}
{% for i in l if ns is defined %}x{% else %}y{% endfor %}
{% set ns = namespace(go=true) %}{% for i in range(5) if ns.go %}{{ i }}{% if i == 2 %}{% set ns.go = false %}{% endif %}{% endfor %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d2) = (3, 4) %}{{ c }}{{ d2 }}{% set t2 = 1, 2 %}{{ t2 }}{% set x = y = 1 %}
{% set n.x = 1 %}
{% set x %}block {{ n }}{% endset %}[{{ x }}]{% set y | upper %}up{{ n }}{% endset %}{{ y }}{% set z2|replace('a','b')|length %}aaa{% endset %}{{ z2 }}
{% set ns = namespace() %}{% set ns.body %}B{{ n }}{% endset %}{{ ns.body }}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}{% with %}{% set q2 = 1 %}{{ q2 }}{% endwith %}{{ q2 is defined }}{% with x = 1 %}{% with x = x + 1, y = x %}{{ x }}{{ y }}{% endwith %}{% endwith %}
{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}{{ m() }}{{ m(1, 2, 3) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}{{ m() }}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}
{% macro m(a) %}[{{ caller(a) }}{{ caller(2) }}]{% endmacro %}{% call(x) m(1) %}<{{ x }}>{% endcall %}{% macro p() %}{{ caller() }}{% endmacro %}{% call p() %}body {{ n }}{% endcall %}
{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}
{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}
{% macro f(n) %}{% if n > 1 %}{{ n }} {{ f(n - 1) }}{% else %}1{% endif %}{% endmacro %}{{ f(5) }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}{% for x in [7] %}{{ m() }}{% endfor %}
{% for i in [1,2] %}{% macro m() %}i{{ i }}{% endmacro %}{{ m() }}{% endfor %}{{ m is defined }}
{% macro m(x) %}{% set y = x %}{{ y }}{% endmacro %}{{ m(3) }}{{ y is defined }}{% macro k(l=[1]) %}{{ l }}{% endmacro %}{{ k() }}{{ k(*[2]) }}{{ k(**{'l': 3}) }}
{{ dict(*[[('a', 1)]], **{'b': 2}) }}{{ range(*[1, 3])|list }}
{% filter upper %}abc {{ n }}{% endfilter %}{% filter replace('a', 'b')|upper %}aaa{% endfilter %}{% filter trim %}  x  {% endfilter %}
{% raw %}{{ not }} {% if %}{% endraw %}|{%- raw -%} {{ x }} {%- endraw -%}|
a{# comment #}b{#- c -#} d {# multi
{% print n %}{% print n, s %}
{% block title %}T{{ n }}{% endblock %}{{ self.title() }}{% block b2 %}{% endblock b2 %}
{% for i in [1, 2] %}{% block scoped_one scoped %}{{ i }}{% endblock %}{% endfor %}
{% for i in [1, 2] %}{% block unscoped %}{{ i is defined }}{% endblock %}{% endfor %}
{% generation %}text {{ n }}{% set g1 = 1 %}{% endgeneration %}{{ g1 is defined }}
{% autoescape false %}{{ html }}{% endautoescape %}
{% include 'x' %}
{% import 'x' as y %}
{% from 'x' import y %}
{% extends 'x' %}
{% if false %}{% include 'x' %}{% endif %}ok
{% do l.append(1) %}
{% nope %}
{% if %}{% endif %}
{% if true %}
{% endif %}
{% for x in l %}
{{ 1 +
{{ 'unclosed }}
{{ (1 }}
{{ ) }}
{{ 1 1 }}
{{ a b }}
{{ }}
{% set 1 = 2 %}
{% set true = 2 %}
{{ @ }}
{{ 'a' if }}
{{ x.y. }}
{% break %}
{{ {'a' 1} }}
{{ f(a=1, 2) }}
{{ "é".upper() }}{{ 'ünï'|upper }}{% set ñ = 1 %}{{ ñ }}
{{ loop is defined }}{% for x in [1] %}{{ loop is defined }}{% endfor %}{{ loop is defined }}
{% for x in l -%} {{ x }} {%- endfor %}|{%+ if true %}a{% endif %}
{{- 'a' -}}  b  {{- 'c' }}
{{ 1 }}{{ x if x is defined else 'undef' }}{{ s if s else 'e' }}{{ (s, n) }}
{{ messages[0]['role'] }}{{ messages[-1].content }}{{ messages|map(attribute='role')|list }}{{ messages[0].role != 'system' }}
{{ [1,2,3][1:][0] }}{{ 'a.b.c'.split('.')[-1] }}{{ {'a': [1]}['a'][0] }}{{ ('a', 'b')[1] }}{{ 'abc'[1].upper() }}
{{ s.split(', ')|last|upper }}{{ (s ~ '!').lower().split()[0] }}{{ d.items()|list|first|join }}
{{ 1 if 2 if 3 else 4 else 5 }}
{{ [x for x in l] }}
""")

# Whitespace ---------------------------------------------------------------------------------------------------------
for text in [
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%+ if true %}\n  b\n  {%+ endif %}\nc",
    "a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc\n\n",
    "  {{ n }}  \n  {{- n -}}  \n x",
    "  {# c #}\n  a {# c #}\n{#- c -#}\n b",
    "{% if true +%}\n x{% endif +%}\n y",
    "x{% if true %}\n\ny{% endif %}\n\nz",
    "\n{% for i in l %}\n  {{ i }}\n{% endfor %}\n",
    "a\r\nb\r{{ 'x\r\ny' }}\n",
    "  \t {% set x = 1 %}  \n{{ x }}",
    "a {% raw %}\n  {{ x }}\n  {% endraw %}\n b",
    "  {% raw %} x {% endraw %} ",
    "{%- raw %} x {% endraw -%}   y",
    "\xa0 {%- if true %} x{% endif %}",
    "\u3000{% if true %}x{% endif %}",
    "a{%- set x = 1 -%} b {#- c +#} \nd",
    "{% if true %}  {% endif %}  \n  {% if true %}x{% endif %}",
    "{{ n }}\n",
    "{{ n }}\n\n",
    "\n",
    "",
    "{",
    "{ {",
    "}} %} #}",
    "{{ '{{' }} {{ '%}' }} {{ {'a': {'b': 1}}['a'] }} {{ {'a':{'b':1}}}}",
    "{% macro m() -%}\n   x\n{%- endmacro %}\n[{{ m() }}]",
    "{% for i in l %}{{ i }}\n{% endfor %}",
    "{% for i in l -%}\n{{ i }}\n{% endfor -%}\n  end",
    "line1\n    {{ n }}\n    {% if n %}\n    yes\n    {%- endif %}\nend",
]:
    one(text)


def cases():
    for template in TEMPLATES:
        yield template, CONTEXT
