#!/usr/bin/env python3
"""Makes tests/data/text/jinja.json: expressions and templates, and what Jinja2 makes of them.

    pip install "transformers==5.*" jinja2
    python scripts/make_jinja_fixtures.py

Every row is a template that transformers compiles (`_compile_jinja_template`) and renders with `CONTEXT`. Its
result is the text, or null where compiling or rendering fails. Rows whose result has the address of an object
are left out. `DIFFERENT` lists the templates that the server refuses
although Jinja2 renders them, with the reason. Running the script again writes the same file.
"""

import copy
import itertools
import json
import pathlib

from transformers.utils.chat_template_utils import _compile_jinja_template

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "data" / "text" / "jinja.json"

CONTEXT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Hi <b> there\n", "name": "Ada"},
        {"role": "assistant", "content": "<think>hm</think>\n\nYes", "reasoning_content": "why"},
        {"role": "tool", "content": "21", "tool_call_id": "c1"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "add",
                "description": "Adds 'two' \"numbers\"",
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "items": {"type": "array"}},
                    "required": ["a"],
                },
            },
        }
    ],
    "s": "Hello, World",
    "empty": "",
    "words": " one  two\tthree\nfour ",
    "lines": "a\r\nb\n\nc\x0bd\u2028e\rf\n",
    "uni": "Straße É ñ 日本 😀 ǆ",
    "odd": "tab\t nul\x00 bell\x07 quote' \" back\\ nb\u00a0 zw\u200b soft\u00ad \U000e0001",
    "n": 7,
    "neg": -3,
    "zero": 0,
    "big": 2**62,
    "u64": 2**64 - 1,
    "f": 2.5,
    "third": 1 / 3,
    "huge": 1e22,
    "tiny": 1e-7,
    "whole": 3.0,
    "t": True,
    "no": False,
    "nil": None,
    "l": [3, 1, 2],
    "ls": ["b", "A", "c"],
    "nested": [[1, 2], [3, [4, None]]],
    "d": {"a": 1, "b": "two", "items": 3},
    "dn": {"x": {"y": [1, 2, {"z": "deep"}]}},
    "people": [
        {"name": "Bob", "age": 30, "city": "Rome"},
        {"name": "ada", "age": 36, "city": "London"},
        {"name": "Cyd", "age": 30, "city": "rome"},
    ],
    "e": {},
    "el": [],
}

# The values that operations are tried on: one of every kind.
VALUES = ["s", "empty", "n", "neg", "f", "t", "nil", "l", "el", "d", "e", "missing", "(1, 'x')", "d.items()",
          "range(3)"]

TESTS = [
    "boolean", "callable", "defined", "even", "false", "float", "integer", "iterable", "lower", "mapping", "none",
    "number", "odd", "sequence", "string", "true", "undefined", "upper", "escaped", "divisibleby 3",
    "divisibleby(0)", "sameas none", "sameas true", "eq 7", "ne(7)", "lt 3", "le 3", "gt 3", "ge 3", "in [7, 'a']",
    "in 'Hello, World'", "in d", "equalto('x')", "greaterthan 2", "lessthan(2)",
]

FILTERS = [
    "abs", "attr('upper')", "batch(2)|list", "capitalize", "center(9)", "count", "d('D')", "default('D', true)",
    "dictsort", "e", "filesizeformat", "first", "float", "float(1.5)", "format", "groupby('a')", "indent",
    "int", "int(5)", "items|list", "join", "join('-')", "last", "length", "list", "lower", "map('string')|list",
    "max", "min", "pprint", "reject|list", "replace('1', '2')", "reverse|list", "round", "round(1)", "safe",
    "select|list", "select('string')|list", "selectattr('a')|list", "rejectattr('a', 'none')|list", "slice(2)|list",
    "sort", "sort(reverse=true)", "string", "striptags", "sum", "title", "tojson", "tojson(indent=2)", "trim",
    "truncate(8)", "unique|list", "upper", "urlencode", "wordcount", "xmlattr", "forceescape",
]

OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]

OPERANDS = ["'ab'", "''", "3", "-2", "2.5", "true", "none", "[1, 2]", "[]", "d", "missing", "(1, 2)"]

EXPRESSIONS = """
s.upper() + s.lower() ~ s.swapcase() ~ s.title() ~ 'fOO bAR'.capitalize() ~ 'ß'.casefold()
s.split(',')
s.split()
words.split()
words.split(none, 1)
words.split(maxsplit=2)
words.rsplit(none, 1)
words.rsplit(none, 0)
words.split(none, 0)
'a,b,,c'.split(',')
'a,b,,c'.split(',', 1)
'a,b,,c'.split(sep=',')
'a,b,,c'.split(sep=',', maxsplit=2)
'a,b,,c'.split(',', maxsplit=-1)
'a</t>b</t>c'.rsplit('</t>', 1)[-1]
'a</t>b</t>c'.rsplit('</t>')
'a</t>b</t>c'.rsplit(sep='</t>', maxsplit=1)
'abc'.split('')
''.split()
''.split(',')
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=')
'abc'.rpartition('=')
'abc'.partition('')
'abcabc'.index('c')
'abcabc'.index('z')
'abcabc'.rindex('b')
'abcabc'.find('z')
'abcabc'.rfind('a')
'abcabc'.find('a', 1)
'abcabc'.find('c', 3, 5)
'abcabc'.find('', 10)
'日本日'.find('日', 1)
'日本日'.rfind('日')
'aaa'.count('a')
'aaa'.count('aa')
'aaa'.count('')
'aaa'.count('a', 1)
'7'.zfill(3)
'-7'.zfill(4)
'+7'.zfill(4)
'abc'.zfill(2)
''.zfill(2)
s.startswith('Hello')
s.startswith(('x', 'He'))
s.startswith(['x', 'He'])
s.startswith('World', 7)
s.startswith('ello', 1, 3)
s.endswith('World')
s.endswith(('x', 'ld'))
s.endswith('Hello', 0, 5)
s.startswith()
s.startswith(5)
s.startswith('')
'xxaxx'.strip('x')
'xxaxx'.lstrip('x')
'xxaxx'.rstrip('x')
'  a '.strip() ~ '|'
'\\x1c a\\u00a0'.strip() ~ '|'
' a '.strip(none) ~ '|'
'abc'.strip(5)
'abcba'.strip('ab')
'a-b-c'.replace('-', '+')
'a-b-c'.replace('-', '+', 1)
'a-b-c'.replace('-', '')
'abc'.replace('', '.')
'abc'.replace('', '.', 2)
'abc'.replace('b')
'abc'.replace(1, 2)
'abc'.removeprefix('ab') ~ 'abc'.removesuffix('bc') ~ 'abc'.removeprefix('x')
'ab'.center(5, '*')
'ab'.center(6, '*')
'abc'.center(6, '*')
'abc'.center(5)
'ab'.ljust(5, '.') ~ 'ab'.rjust(5, '.')
'ab'.ljust(5, '..')
'a\\tb'.expandtabs()
'a\\tb\\n\\tc'.expandtabs(4)
lines.splitlines()
lines.splitlines(true)
lines.splitlines(keepends=true)
''.splitlines()
'abc'.isalpha() ~ 'ab1'.isalpha() ~ 'ab1'.isalnum() ~ '12'.isdigit() ~ '½'.isdigit() ~ '²'.isdigit()
'²'.isdecimal() ~ '½'.isnumeric() ~ '١'.isdecimal() ~ ''.isdigit() ~ ''.isalpha()
' \\n'.isspace() ~ ''.isspace() ~ 'Ab'.istitle() ~ 'AB'.istitle() ~ 'ab'.islower() ~ 'a1'.islower() ~ '1'.islower()
'AB'.isupper() ~ 'A1'.isupper() ~ ''.isupper() ~ 'a_1'.isidentifier() ~ '1a'.isidentifier()
'abc'.isascii() ~ 'é'.isascii() ~ 'a\\n'.isprintable() ~ 'a b'.isprintable()
', '.join(['a', 'b'])
', '.join([1, 2])
'-'.join('abc')
'-'.join({'a': 1, 'b': 2})
'-'.join(missing)
'-'.join(none)
'-'.join(ls|map('lower'))
'{} and {}'.format(1, 'x')
'{1} {0}'.format('a', 'b')
'{a} {b}'.format(a=1, b=none)
'{0[a]} {0[b]}'.format(d)
'{x.y[0]}'.format(x=dn.x)
'{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd')
'{:5}|{:5}'.format(1, 'a')
'{:05d} {:+d} {:x} {:X} {:#x} {:b} {:o} {:,}'.format(42, 42, 255, 255, 255, 5, 8, 1234567)
'{:.2f} {:e} {:g} {:%} {:.3}'.format(3.14159, 12345.678, 0.0001, 0.25, 'abcdef')
'{:,.2f} {:_} {:010.3f} {:+.1e}'.format(1234567.891, 1234567, -3.14159, 0.00012)
'{!r} {!s} {!a}'.format('é\\n', 'x', 'é')
'{{}} {}'.format(1)
'{} {}'.format(1)
'{'.format(1)
'}'.format(1)
'{:>{}}'.format('a', 4)
'{:{w}}|'.format('a', w=3)
'{:d}'.format('a')
'{:s}'.format(5)
'{}'.format([1, 'a', none])
'{}'.format(missing)
'{a}'.format_map({'a': 5})
'{b}'.format_map({'a': 5})
'{.upper}'.format('a') is string
'%s: %s' % ('a', 'b')
'%s' % 'a'
'%s' % [1, 2]
'%s' % none
'%s' % (1,)
'%d items' % 3
'%d' % 3.9
'%d' % 'x'
'%5d|%-5d|%05d|%+d|% d' % (1, 2, 3, 4, 5)
'%.2f %5.1f %e %g %G' % (3.14159, 2.55, 12345.678, 1e-5, 1e20)
'%x %X %o %#x %c %c' % (255, 255, 8, 255, 65, 'z')
'%r %a' % ('é', 'é')
'%(a)s-%(b)s' % d
'%(zz)s' % d
'%s%%' % 50
'%' % 1
'%s %s' % 'a'
'a' % 'b'
'%*d' % (5, 42)
'%.3s|%10s|%-10s|' % ('abcdef', 'r', 'l')
'%i %u' % (1, 2)
'%.3d' % 7
'%s' % missing
'%s' % true
'%d' % true
'a' 'b' "c"
'a\\nb\\tc\\\\d\\'e\\x41\\u00e9\\101\\q'
"it's"
'say "hi"'
'both \\' and "'
['it\\'s', 'say "hi"', 'both \\' and "', 'back\\\\slash', 'new\\nline', 'é', '\\u200b', '\\x00', '\\x7f', '\\xa0']
[odd, uni]
[lines]
uni.upper() ~ uni.lower() ~ uni.title()
uni|title ~ uni|upper ~ uni|capitalize ~ uni|length ~ uni[::-1]
"o'neil bill-jones (the [third] {x} <y>"|title
"o'neil bill-jones 3rd".title()
none ~ true ~ false ~ [] ~ {} ~ 1.0 ~ missing ~ 'x'
[none, true, false, 1, 1.0, 'a', [], {}, (), (1,), (1, 2)]
{'a': none, 'b': true, 1: 'x', 2.5: [], none: 0, true: 1, (1, 2): 3}
{'a': 1, 'a': 2}
{1: 'a', true: 'b', 1.0: 'c'}
{[1]: 2}
[1.0, 1e16, 1e15, 123456789012345678.0, 1e-4, 1e-5, 0.1, 1e100, 1.5e300, -0.0, 1e22, 5e-324, 100000.0]
[third, huge, tiny, whole, f, big, u64, big * 4, u64 + 1, u64 * 9, -big * 2]
[1/3, 2/3, 10/2, 7//2, -7//2, 7 % 3, -7 % 3, 7 % -3, -7 % -3, 7.5 // 2, -7.5 // 2, 7.5 % 2, -7.5 % 2, 2 ** 10]
[2 ** -1, 2 ** 0.5, 4 ** 0.5, (-2) ** 2, -2 ** 2, 2 ** 3 ** 2, 0 ** 0, 2.0 ** 3]
1 / 0
1 // 0
1 % 0
1.0 / 0
1e308 * 10
[1 + 1.5, 1 + true, true + true, 'a' + 'b', [1] + [2], (1,) + (2,)]
['a' * 3, 3 * 'a', 'a' * -1, [0] * 3, (1, 2) * 2, 'ab' * true]
'a' * 2.5
-'a'
- none
+true
-true
--5
[-n, +n, - f, -(3)]
1 + 2 * 3 - 4 / 2
(1 + 2) * 3
1 ~ 2 ~ 3 + 4
1 ~ 2 * 3
10 - 2 - 3
100 / 10 / 2
2 + 3 ~ 4
not true or true
not (true or true)
not none and 1
1 and 2 and 3
1 and 0 and 3
'' or 0 or [] or 'last'
'' and 'x'
0 or none
none or ''
[] and 1
1 if true else 2
1 if false else 2
1 if false
(1 if false) is undefined
(1 if false).x
'a' if nil else 'b' if t else 'c'
1 < 2 < 3
1 < 3 < 2
1 < 2 > 1 == 1
3 > 2 > 2
1 == 1.0 == true
1 < 'a'
'a' < 'b'
'a' < 'B'
[1, 2] < [1, 3]
(1, 2) < (1, 2, 0)
none < 1
none == none
none == false
missing == missing
missing == none
missing == ''
missing != none
missing < 1
1 == '1'
0 == false
'' == false
[1, 2] == (1, 2)
[1, 2] == [1.0, 2]
{'a': 1} == {'a': 1.0}
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
{'a': 1} < {'a': 2}
9007199254740993 == 9007199254740992.0
9007199254740993 > 9007199254740992.0
'a' in 'abc'
'' in 'abc'
1 in 'abc'
none in 'abc'
1 in [1, 2]
1.0 in [1, 2]
'1' in [1, 2]
'a' in d
1 in d
[1] in d
'a' in missing
'a' in none
'a' in 5
'a' not in ['b']
not 'a' in ['b']
('a', 1) in d.items()
'a' in d.keys() and 1 in d.values()
2 in range(3)
l[0] ~ l[-1] ~ l[1:] ~ l[:-1] ~ l[::-1] ~ l[::2] ~ l[5:] ~ l[-2:] ~ l[2:0:-1] ~ l[:]
l[10] is undefined
l[10].x
l['x'] is undefined
l[none] is undefined
l[true]
l[1.0] is undefined
s[0] ~ s[-1] ~ s[1:4] ~ s[::-1] ~ s[::3] ~ s[-5:] ~ s[:-7] ~ s[7:2] ~ s[10:2:-2]
s[-3::-1] ~ '|' ~ s[:3:-1] ~ '|' ~ s[-1:-4:-1] ~ '|' ~ s[100:] ~ '|' ~ s[-100:3] ~ '|' ~ s[3:-100:-1]
s[20] is undefined
uni[1:4]
s[::0]
(1, 2, 3)[1:]
range(10)[2:5]|list
range(5)[-1]
none[1:]
none[0] is undefined
5[0] is undefined
missing[1:]
missing[0]
missing.x
missing.x.y is defined
missing()
missing is callable
none.x is undefined
none.x.y
d.a ~ d['a'] ~ d.b ~ d.zz is undefined
d.zz
d.zz.y
d['items']
d.items is callable
d.items() | list
d['keys'] is callable
d.keys()
d.values()
d.items()
d.get('a') ~ d.get('zz') ~ d.get('zz', 5) ~ d.get('zz', default=5)
d.get('zz', 5)
d.get()
d.get([1])
d.copy() == d
d.keys() | list ~ d.values() | list
d.items() | length
d.items()[0] is undefined
d.update({'x': 1})
d.pop('a')
d.setdefault('q', 1)
l.append(4)
l.sort()
l.pop()
l.extend([1])
l.append is defined
l.copy()
l.index(1) ~ l.count(1)
l.index(9)
l.index(2, 1)
(1, 2, 1).count(1) ~ (1, 2).index(2)
'abc'.foo
'abc'.foo()
'abc'.__class__
'abc'.__class__ is defined
s['upper']()
d.__class__
{'_x': 1}._x
dict(a=1, b=2)
dict({'a': 1}, b=2)
dict([('a', 1), ['b', 2]])
dict(d, a=5)
dict()
dict.fromkeys(['a', 'b'], 0)
dn.x.y[2].z
dn['x']['y'][-1]['z']
nested[1][1][0] ~ nested.1.0
range(3) ~ range(1, 3) ~ range(0, 10, 5) ~ range(3, 0, -1) ~ range(0)
range(3)|list
range(5, 0, -2)|list
range(0)|list
range(1, 2, 0)
range(1000000)
range(2.5)
range('a')
range(3)|length
l|sort ~ l|sort(reverse=true) ~ ls|sort ~ ls|sort(case_sensitive=true) ~ ls|sort(true)
people|sort(attribute='age')|map(attribute='name')|join(',')
people|sort(attribute='age,name')|map(attribute='name')|join(',')
people|sort(attribute='city', reverse=true)|map(attribute='name')|join(',')
people|map(attribute='name')|list
people|map(attribute='zz')|list
people|map(attribute='zz', default='-')|list
people|map(attribute='name')|map('upper')|join(' ')
people|map('length')|list
people|map(attribute='name', x=1)|list
ls|map('replace', 'b', 'x')|list
ls|map('nope')|list
ls|map|list
['1', '2']|map('int')|sum
nested|map('first')|list
nested|map(attribute=0)|list
people|selectattr('age', '>', 30)|map(attribute='name')|list
people|selectattr('age', 'equalto', 30)|list|length
people|selectattr('age', '==', 30)|map(attribute='name')|join
people|selectattr('name', 'in', ['Bob', 'Cyd'])|map(attribute='name')|list
people|rejectattr('age', 'lt', 35)|map(attribute='name')|list
people|selectattr('zz', 'defined')|list
people|selectattr('zz', 'undefined')|list|length
people|selectattr('zz')|list
people|selectattr('name', 'nope')|list
people|selectattr|list
messages|selectattr('role', 'equalto', 'user')|list|length
messages|rejectattr('role', 'equalto', 'system')|map(attribute='role')|list
messages|selectattr('tool_call_id', 'defined')|map(attribute='content')|first
messages|map(attribute='role')|unique|list
messages|map(attribute='content')|select('string')|map('trim')|list
l|select('odd')|list ~ l|reject('odd')|list ~ l|select('gt', 1)|list ~ l|select('divisibleby', 3)|list
l|select|length
l|select is iterable
l|map('string')|length
(l|map('string')) is sequence
l|max ~ l|min ~ l|sum ~ ls|max ~ ls|min ~ ls|max(case_sensitive=true)
people|max(attribute='age')
people|sum(attribute='age')
people|sum('age', 100)
el|max is undefined
el|first is undefined
el|last is undefined
l|sum(start=10)
ls|sum
[[1], [2]]|sum(start=[])
[1, 'a']|sort
[1, none]|max
l|first ~ l|last ~ s|first ~ s|last ~ d|first
l|reverse|list ~ s|reverse ~ (l|reverse|first)
l|reverse|length
(l|map('string'))|last
people|groupby('city')|list
people|groupby('city', case_sensitive=true)|map(attribute='grouper')|list
people|groupby('age')|map('first')|list
(people|groupby('age')|first).list|length
people|groupby('zz', default='none')|map(attribute='grouper')|list
d|dictsort ~ d|dictsort(by='key', reverse=true)
{'b': 1, 'A': 2}|dictsort
{'b': 1, 'A': 2}|dictsort(true)
{'b': 1, 'A': 2}|dictsort(false, 'value')
{'b': 1, 'A': 2}|dictsort(by='x')
d|dictsort(by='value')
d|items|list
d|items|length
missing|items|list
l|items|list
l|batch(2)|list ~ l|batch(2, 0)|list
l|slice(2)|list ~ l|slice(2, 0)|list ~ l|slice(5)|list
[1, 1.0, true, 'a', 'A']|unique|list
['a', 'A']|unique(case_sensitive=true)|list
people|unique(attribute='age')|map(attribute='name')|list
[[1], [1]]|unique|list
l|join(', ') ~ ls|join ~ people|join('-', attribute='name') ~ [1, none, true]|join(' ')
s|join('.')
'a\\nb\\n\\nc'|indent
'a\\nb\\n\\nc'|indent(2)
'a\\nb\\n\\nc'|indent(2, true)
'a\\nb\\n\\nc'|indent(2, blank=true)
'a\\nb\\n\\nc'|indent('> ', first=true, blank=true)
'a\\nb\\n'|indent(2)
''|indent(2, true)
'abc'|center(10) ~ '|'
'abc'|center ~ '|'
'foo bar baz qux'|truncate(9)
'foo bar baz qux'|truncate(9, true)
'foo bar baz qux'|truncate(11)
'foo bar baz qux'|truncate(11, false, '...', 0)
'foo bar baz qux'|truncate(9, end='', leeway=0)
'foo bar baz qux'|truncate(2)
'the quick brown fox'|wordwrap(10)
'a b\\nc d'|wordwrap(3, wrapstring='|')
'don\\'t stop, e-mail me_now'|wordcount
'<p>a <b>b</b>\\n c</p>'|striptags
'<a href="x">&\\'</a>'|escape
('<a>'|escape) + '<b>'
'<a>'|safe
('<a>'|safe) + '<b>'
('<a>'|safe) ~ '<b>'
'a b/c?d=é&f'|urlencode
{'a': 1, 'b c': 'é'}|urlencode
{'class': 'x', 'id': none, 'n': 5}|xmlattr
[1, 1000, 1500000, 1024, 0, 1e15]|map('filesizeformat')|list
1024|filesizeformat(true)
'%s-%s'|format('a', 1)
'%(x)s'|format(x=5)
'%s'|format
'abc'|replace('b', 'X') ~ 'aaa'|replace('a', 'b', 2) ~ 123|replace(2, 5)
42.55|round ~ ' ' ~ 42.55|round(1) ~ ' ' ~ 42.55|round(1, 'floor') ~ ' ' ~ 42.55|round(1, 'ceil') ~ ' ' ~ 42|round
[0.5|round, 1.5|round, 2.5|round, 2.675|round(2), -1.5|round, 1234.5|round(-2), 1250|round(-2), 1350|round(-2)]
1.5|round(method='x')
'42'|int ~ ' 42 '|int ~ '4_2'|int ~ '42.7'|int ~ 'x'|int ~ 'x'|int(7) ~ '0x1A'|int(base=16) ~ '101'|int(0, 2)
'ff'|int(base=16) ~ ''|int ~ none|int ~ 3.9|int ~ -3.9|int ~ true|int ~ 'inf'|int ~ '1e3'|int ~ '-5'|int
l|int
'3.5'|float ~ 'x'|float ~ 'x'|float(1) ~ none|float ~ 3|float ~ true|float ~ 'inf'|float ~ '1e5'|float
('nan'|float) ~ ('-inf'|float) ~ ([1e400]|string)
-5|abs ~ (-5)|abs ~ (-2.5)|abs ~ true|abs
missing|default('x') ~ none|default('x') ~ ''|default('x') ~ ''|default('x', true) ~ none|default('x', boolean=true)
missing|d ~ '|'
missing.x|default('x')
d.zz|default('x')
d.zz.y|default('x')
missing|default(missing2)|default('z')
none|string ~ true|string ~ l|string ~ d|string ~ 1.0|string ~ s|string
(5|string) is string
s|list
d|list
missing|list
none|list
5|list
l|length ~ s|length ~ d|length ~ missing|length ~ (1, 2)|length
none|length
5|length
d|tojson ~ l|tojson ~ s|tojson ~ none|tojson ~ true|tojson ~ 1.0|tojson ~ 1e20|tojson ~ uni|tojson
d|tojson(indent=2)
nested|tojson(indent=4)
dn|tojson(indent='--')
e|tojson(indent=2) ~ el|tojson(indent=2)
d|tojson(separators=(',', ':'))
d|tojson(separators=(',', ':'), indent=1)
{'b': 1, 'a': {'d': 1, 'c': 2}}|tojson(sort_keys=true)
uni|tojson(ensure_ascii=true)
odd|tojson
odd|tojson(true)
d|tojson(false, 2)
d|tojson(indent=0)
d|tojson(indent=-1)
d|tojson(indent=true)
d|tojson(indent=1.5)
d|tojson(x=1)
{1: 'a', true: 'b', none: 'c', 2.5: 'd'}|tojson
{(1, 2): 3}|tojson
(1, 2)|tojson
range(3)|tojson
d.keys()|tojson
missing|tojson
[missing]|tojson
[1e400, 'nan'|float]|tojson
'</script>&\\'"'|tojson
tools|tojson
tools[0]|tojson(indent=4)
tools[0].function.parameters.properties.items is callable
tools[0]['function']['parameters']['properties']['items']
tools[0].function.parameters.properties|items|list
tools|map(attribute='function.name')|list
tools|map(attribute='function')|map(attribute='name')|join(', ')
s is string and s is not mapping and s is iterable and s is sequence
s is in ['a', s]
7 is divisibleby 7 and 8 is not divisibleby(3)
'upper' is filter and 'nope' is not filter and 'odd' is test
d is mapping and d is iterable and d is sequence
none is iterable
missing is iterable ~ missing is sequence ~ missing is mapping ~ missing is string
d.items() is iterable ~ d.items() is sequence ~ d.items() is mapping
1 is integer ~ true is integer ~ 1.0 is integer ~ true is number ~ 1 is boolean ~ 1 is true
range is callable ~ s is callable ~ s.upper is callable ~ dict is callable
[] is sameas []
none is sameas none ~ 1 is sameas 1.0
'ABC' is upper ~ 'abc' is lower ~ 5 is lower ~ 'é' is lower
1 is eq 1 ~ 1 is ne 2 ~ 1 is lt 2 ~ 1 is le 1 ~ 2 is gt 1 ~ 2 is ge 2 ~ 1 is equalto 1
1 is nope
1 is odd is true
messages[0] is defined and messages[9] is not defined
messages[0].content is string and messages[4].content is not string
messages[1].get('name', 'x') ~ messages[0].get('name', 'x')
messages[-1]['content'][0]['text']
messages[::-1][0].role ~ messages[1:]|length ~ messages[:1][0]['role']
messages|length > 3 and messages[0]['role'] == 'system'
messages[2].content.split('</think>')[-1].lstrip('\\n')
messages[2].content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')
('<think>' in messages[2].content and '</think>' in messages[2].content)
messages[0].role|upper ~ messages[0]['role']|capitalize
messages|string|length
messages[1]
messages[1].content|trim ~ '|' ~ messages[1]['content'].strip() ~ '|'
joiner()() ~ joiner('x')()
cycler('a', 'b').next()
raise_exception('no')
raise_exception()
nofunction()
s()
5()
(s.upper)()
[s.upper, s.lower][1]()
{'f': s.upper}.f()
{'get': 5}.get
{'get': 5}['get']
{'get': 5}.get('get')
foo.bar.baz
'a' is defined
(1, 2) is sequence
()
(1,)
((1))
1,
1, 2
[1, 2,]
{'a': 1,}
[,]
{'a'}
d[]
d['a',]
d['a', 'b'] is undefined
0x1F ~ 0b101 ~ 0o17 ~ 1_000 ~ 1e3 ~ 1.5e-3 ~ 1E2
007
1.
.5
1.e5
'a'.0
'abc'.1
s.0 ~ l.1
a..b
1 +
* 2
(1
[1
'abc
1 2
a b
a = 1
a := 1
a ? b
a && b
!a
lambda x: x
[x for x in l]
l | sort | first
l|sort|first ~ '' is string
'x'|nope
'x' if true else 'x'|upper
s|upper|lower|title
-1|abs
2 ** 2|abs
1 + 1|string|length
n is divisibleby n
true and s is string
True ~ False ~ None ~ true ~ false ~ none
loop is undefined
caller is undefined
varargs is undefined
messages is defined and bos_token is not defined
9223372036854775807 + 1
9223372036854775808
18446744073709551616 * 2
10 ** 30
123456789012345678901234567890
0.1 + 0.2
1e3|int ~ 1e3
3 * 1.0
7 / 7
1_0.0_1
'\\u65e5\\U0001f600'
'\\xzz'
'a\\
b'
u.x if u is defined else 'none'
s.upper().lower().title()
s.center(20).strip()
'abc' is in 'abcd'
(messages[0].content ~ '\\n')|length
("%s" % messages[0].content)[:2]
messages|selectattr('role','in',['user','assistant'])|list|length
[l, l]|map('sort')|list
[d, d]|map(attribute='b')|list
['a', 'b']|map('upper')|join|lower
(l|list + [9])|last
[1, [2, [3]]]|string
{'a': {'b': ['c']}}|string
n.real ~ n.imag ~ f.is_integer() ~ whole.is_integer() ~ n.bit_length()
""".strip("\n")

TEMPLATES = [
    # Line ends and whitespace control.
    "a\r\nb\rc\n{% if true %}\r\nd\r\n{% endif %}\r\ne",
    "a\n", "a\n\n", "a\r\n", "\n", "", "a\n{# c #}\nb", "a {# c #} b", "a{#- c -#} b", "a  {#- c #} b\n",
    "  {% if true %}\n  x\n  {% endif %}\ny", "a  {%- if true %} b {%- endif %}  c", "a {{- ' x ' -}} b",
    "a\n  {%+ if true %}b{% endif %}\nc", "a {% if true +%}\nb{% endif %}\nc", "{{ 'x' }}\ny", "{{ 'x' }}  \n  y",
    "{% set x = 1 %}\n\nx", "  {{ 'a' }}\n  {% set b = 1 %}  c", "\t{% if true %}x{% endif %}\t\n",
    "{% if true %}\n\n  a\n\n{% endif %}\nb", "{%- if true -%}\n  a  \n{%- endif -%}\n b", "\ufeffa",
    "a\u00a0{%- if true %}b{% endif %}", "x\u2028{%- if true %}b{% endif %}", "{% raw %}{{ x }}{% endraw %}",
    "{% raw -%}\n {{ x }}\n {%- endraw %}\ny", "{% raw %}\n{% if %}\n{% endraw %}\nz", "{%raw%}a{%endraw%}b",
    "a {\n", "{ {% if true %}x{% endif %} }", "{ {{ 'x' }} }", "{ {%- if true %}% x{% endif %}", "}} %} #}",
    "{{ '{{' }}{{ '}}' }}", "{{ '{%' }}", "{{ \"#}\" }}", "{#{{ x }}#}a", "{# {% if %} #}b", "{{'a'}}{{'b'}}",
    "{{ {'a': {'b': 1}}}}", "{{{'a': 1}}}", "{% if true %}{{ 'a' }}\n{% endif %}b\n", "{{\n'a'\n}}\n",
    "{{ 'a\nb' }}", "{{ 'a\r\nb' }}", "a\r{{ 'b' }}\r\n", "{#", "{{", "{%", "{{ }}", "{% %}", "{% raw %}",
    "{{ 'a' }", "{% if true %}", "{% endif %}", "{% if %}a{% endif %}", "{% foo %}", "{% else %}",
    "{% for %}{% endfor %}", "{% for x in %}{% endfor %}", "{% for x l %}{% endfor %}", "{{ a b }}",
    # Conditions.
    "{% if nil %}a{% elif t %}b{% else %}c{% endif %}", "{% if missing %}a{% else %}b{% endif %}",
    "{% if el %}a{% elif e %}b{% elif empty %}c{% elif zero %}d{% else %}e{% endif %}",
    "{% if '' is string and not '' %}x{% endif %}", "{% if (l|select) %}gen{% endif %}{% if range(0) %}r{% endif %}",
    "{% if () %}a{% endif %}{% if (0,) %}b{% endif %}{% if d.keys() %}c{% endif %}{% if e.keys() %}d{% endif %}",
    "{% if 0.0 %}a{% endif %}{% if '0' %}b{% endif %}{% if s.upper %}c{% endif %}{% if range %}d{% endif %}",
    "{% if true: %}a{% endif %}", "{% if 1, 2 %}a{% endif %}", "{% if not x is defined %}n{% endif %}",
    "{% if false %}{{ 'x'|nope }}{% endif %}ok", "{% if true %}{{ 'x'|nope }}{% endif %}ok",
    "{% if false %}{{ 1 is nope }}{% endif %}ok", "{{ 'x'|nope if false else 'ok' }}",
    "{% if false %}{% include 'x' %}{% endif %}ok", "{% include 'x' %}",
    # Loops.
    "{% for x in l %}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}"
    "{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is undefined }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}", "{% for x in l %}{{ loop.nope is defined }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}/{{ loop.length }}/{{ loop.index }} {% endfor %}",
    "{% for x in l if x > 9 %}a{% else %}none{% endfor %}", "{% for x in el %}a{% else %}e{% endfor %}",
    "{% for x in missing %}a{% else %}e{% endfor %}", "{% for x in none %}a{% endfor %}", "{% for x in 5 %}a{% endfor %}",
    "{% for c in 'aé😀' %}{{ c }}.{% endfor %}", "{% for k in d %}{{ k }} {% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d %}{{ k }}{{ v }}{% endfor %}", "{% for a, b in ['xy', 'zw'] %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, in [(1,)] %}{{ a }}{% endfor %}",
    "{% for (a, b) in [[1, 2]] %}{{ a }}{{ b }}{% endfor %}", "{% for a, b in [[1]] %}{{ a }}{% endfor %}",
    "{% for x in 1, 2 %}{{ x }}{% endfor %}", "{% for x in l|map('string') %}{{ loop.length }}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% with y = x %}{% if y == 1 %}{% continue %}{% endif %}{{ y }}{% endwith %}{% endfor %}",
    "{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "{% break %}", "{% if true %}{% continue %}{% endif %}",
    "{% for x in l %}{% for y in ls %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for x in l %}{% set outer = loop %}{% for y in ls %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% for n in nested recursive %}[{% if n is iterable %}{{ loop(n) }}{% else %}{{ n }}{% endif %}]{% endfor %}",
    "{% for n in [1, [2, [3]]] recursive %}{{ loop.depth }}{% if n is sequence %}{{ loop(n) }}{% endif %}{% endfor %}",
    "{% for x in l %}{{ loop(x) }}{% endfor %}", "{{ loop.index }}", "{% for x in l %}{% endfor %}{{ x }}",
    "{% for x in range(3) %}{{ x }}{% endfor %}", "{% for x in range(3, 0, -1) %}{{ x }}{% endfor %}",
    "{% for m in messages %}{{ loop.index0 }}{{ m.role[0] }}{{ m['content'] is string }} {% endfor %}",
    "{% for m in messages[1:] %}{{ m['role'] }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for m in messages|reverse %}{{ m.role }} {% endfor %}", "{% for x in l|sort %}{{ x }}{% endfor %}",
    "{% for x in l %}{{ x }}{% endfor %}{% for x in l %}{{ x }}{% endfor %}",
    "{% set g = l|map('string') %}{{ g|join }}{{ g|join }}|", "{% set g = l|select %}{% for x in g %}{{ x }}{% endfor %}{{ g|list }}",
    "{% set g = l|map('string') %}{{ g|first }}{{ g|list }}",
    "{% for city, group in people|groupby('city') %}{{ city }}:{{ group|map(attribute='name')|join(',') }};{% endfor %}",
    "{% for row in l|batch(2, '-') %}{{ row|join }};{% endfor %}",
    # Variables and scopes.
    "{% set x = 1 %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "{% for i in l %}{{ y is defined }}{% set y = 1 %}{% endfor %}{{ y is defined }}",
    "{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace() %}{{ ns.x is defined }}{% set ns.x = 1 %}{{ ns.x }}{{ ns['x'] }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}", "{% set d.x = 1 %}", "{% set missing.x = 1 %}",
    "{% set ns = namespace(l=[]) %}{% for i in l %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(_x=1) %}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{{ namespace(x=1) is mapping }}",
    "{% set ns = namespace(f=s.upper) %}{{ ns.f() }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = 'xy' %}{{ a }}{{ b }}", "{% set a, b = [1] %}", "{% set (a, b) = (1, 2) %}{{ a + b }}",
    "{% set x = 1, 2 %}{{ x }}", "{% set x = (1,) %}{{ x }}", "{% set x %}a {{ s }} b{% endset %}[{{ x }}]",
    "{% set x | upper %}abc{% endset %}{{ x }}", "{% set x | trim | replace('a', 'b') %} aa {% endset %}{{ x }}",
    "{% set x %}{% endset %}{{ x is string }}{{ x|length }}", "{% set true = 1 %}", "{% set 5 = 1 %}", "{% set x %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% with %}{% set q = 1 %}{% endwith %}{{ q is defined }}",
    "{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% print s, 5 %}", "{% do 1 %}",
    "{% filter upper %}abc {{ s }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aa{% endfilter %}",
    "{% set messages = messages[1:] %}{{ messages|length }}", "{% set s = s.upper() %}{{ s }}",
    "{% set loop_messages = messages %}{% for m in loop_messages %}{{ m.role[0] }}{% endfor %}",
    "{% if t %}{% set q = 1 %}{% else %}{% set q = 2 %}{% endif %}{{ q }}", "{% set q = q|default(3) %}{{ q }}",
    "{% block a %}x{{ s }}{% endblock %}y", "{% set z = 1 %}{% block a %}{{ z is defined }}{% endblock %}",
    "{% generation %}a{{ s }}{% endgeneration %}b", "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}{% endfor %}",
    "{%- generation -%}\n a\n{%- endgeneration -%}\n b", "{% generation %}a", "{% autoescape false %}<a>{{ '<b>' }}{% endautoescape %}",
    # Macros.
    "{% macro f(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(b=4, a=5) }}",
    "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}[{{ f() }}]",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=1) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}", "{% macro f(a=[1]) %}{{ a }}{% endmacro %}{{ f() }}{{ f(none) }}",
    "{% macro f() %}{{ caller() }}!{% endmacro %}{% call f() %}hi{% endcall %}",
    "{% macro f() %}{{ caller('x', 5) }}{% endmacro %}{% call(a, b) f() %}{{ a }}{{ b }}{% endcall %}",
    "{% macro f() %}{% if caller is defined %}c{{ caller() }}{% else %}n{% endif %}{% endmacro %}{{ f() }}{% call f() %}x{% endcall %}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}G{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ f() }}", "{% set x = 1 %}{% macro f() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ f() }}",
    "{% macro f() %}{{ s }}{{ messages|length }}{% endmacro %}{{ f() }}", "{% macro f() %}{% set s = 1 %}{{ s }}{% endmacro %}{{ f() }}{{ s }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ [1, 2]|map('string')|map('upper')|join }}{{ f(*[1]) }}{{ f(**{'x': 2}) }}",
    "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(1, **{'b': 3}) }}{{ f(*'xy') }}",
    "{% macro f(a) -%}\n  x{{ a }}\n{%- endmacro %}[{{ f(1) }}]", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f('a') ~ f('b')|upper }}",
    "{% macro f() %}{% endmacro %}{{ f.name }}{{ f.arguments }}{{ f is callable }}", "{% macro f() %}x{% endmacro %}{{ f()|length }}{{ f() is string }}",
    "{% for x in l %}{% macro f() %}{{ x }}{% endmacro %}{{ f() }}{% endfor %}", "{% macro f(a, b=1, c) %}{% endmacro %}",
    "{% macro render(v, depth=0) %}{% if v is mapping %}{% for k, w in v.items() %}\n{{ '  ' * depth }}{{ k }}:"
    "{{ render(w, depth + 1) }}{% endfor %}{% elif v is string or v is not iterable %} {{ v }}{% else %}"
    "{% for w in v %}{{ render(w, depth + 1) }}{% endfor %}{% endif %}{% endmacro %}{{ render(tools[0]) }}",
    "{% macro f(x) %}{{ x|default('D') }}{% endmacro %}{{ f(missing) }}", "{% call s() %}x{% endcall %}", "{% call 5 %}x{% endcall %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set _ = c.reset() %}{{ c.current }}",
    "{% set j = joiner(',') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}",
    # What chat templates do.
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}",
    "{% for m in messages[:4] %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content|trim }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% elif p['type'] == 'image' %}<i>{% endif %}{% endfor %}{% endif %}|{% endfor %}",
    "{% for m in messages %}{% if m.tool_call_id is defined %}[{{ m.tool_call_id }}]{% endif %}{% if m.tool_calls %}x{% endif %}"
    "{% if m.reasoning_content is defined and m.reasoning_content is not none %}({{ m.reasoning_content }}){% endif %}{% endfor %}",
    "{% set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}{% for message in messages[::-1] %}"
    "{% set index = (messages|length - 1) - loop.index0 %}{% if ns.multi_step_tool and message.role == 'user' and "
    "message.content is string and not(message.content.startswith('<tool_response>') and "
    "message.content.endswith('</tool_response>')) %}{% set ns.multi_step_tool = false %}{% set ns.last_query_index = index %}"
    "{% endif %}{% endfor %}{{ ns.last_query_index }}",
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{{ system_message }}{{ loop_messages|length }}",
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{% endfor %}",
    "{%- if tools is iterable and tools | length > 0 %}T{% endif %}", "{%- if nil is iterable and nil | length > 0 %}T{% endif %}ok",
    "{% for t in tools %}{{ t.function.name }}({% for k, v in t.function.parameters.properties|items %}{{ k }}: {{ v.type }}, {% endfor %})"
    "{{ t|tojson(indent=4) }}{{ t.function|string }}{% endfor %}",
    "{% for k in tools[0]['function'] %}{{ k }} {% endfor %}{{ tools[0].function.keys()|list }}",
    "{{ bos_token }}{{ bos_token is defined }}{{ (bos_token or '') ~ 'x' }}", "{{ bos_token + 'x' }}",
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ add_generation_prompt }}",
    "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}",
    "{{ messages[0].content if messages[0].role == 'system' else 'none' }}", "{{ messages|map(attribute='role')|join(' ')|title }}",
    "{{ '\\n'.join(messages[:3]|map(attribute='content')) }}", "{{ messages[3].content|int * 2 }}", "{{ '%02d' % n }}|{{ '{:03d}'.format(n) }}",
    "{{ 'a' if s == 'x' else ('b' if n > 5 else 'c') }}", "{{ raise_exception('Only ' ~ n ~ ' roles') if n > 5 }}",
]

# Rows for which the server differs, and why. It refuses all of them with an error, most at the start.
DIFFERENT = {
    "{{ -2 ** 2.5 }}": "complex numbers",
    "{{ [u64 * u64, big * big * big] }}": "integers of more than 127 bits",
    "{{ '\\N{BULLET}' }}": "names of characters",
    "{{ s.encode('utf-8') is defined }}": "bytes",
    "{{ self }}": "a reference to the template itself",
    "{% set ns = namespace() %}{% set ns.a, x = 1, 2 %}{{ ns.a }}": "an attribute among several targets",
    "{% for x in l %}{% with y = x %}{% if y == 1 %}{% continue %}{% endif %}{{ y }}{% endwith %}{% endfor %}":
        "break and continue within a tag with variables of its own",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, a=2) }}": "varargs and kwargs of macros",
    "{{ 'a'|urlize }}": "links in HTML",
    "{{ ['a']|random }}": "random results",
    "{{ lipsum() is string }}": "random results",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}": "HTML",
    "{{ 'hyphen-ated words'|wordwrap(8) }}": "wordwrap of words with hyphens",
    "{{ messages|pprint }}": "pprint of more than one line",
    "{% set größe = 1 %}{{ größe }}": "names with other characters than ASCII",
}


def rows():
    """Yields the templates."""
    for value, test in itertools.product(VALUES, TESTS):
        yield f"{{{{ {value} is {test} }}}}"
    for value, name in itertools.product(VALUES, FILTERS):
        yield f"{{{{ {value}|{name} }}}}"
    for left, operator, right in itertools.product(OPERANDS, OPERATORS, OPERANDS):
        yield f"{{{{ {left} {operator} {right} }}}}"
    for expression in EXPRESSIONS.replace("\\\nb'", "\0").split("\n"):
        yield "{{ " + expression.replace("\0", "\\\nb'") + " }}"
    yield from TEMPLATES


def result(template):
    """What transformers renders, or None if it fails."""
    try:
        # `indent` changes lists.
        return _compile_jinja_template(template).render(**copy.deepcopy(CONTEXT))
    except Exception:  # errors of every kind: syntax, types, values
        return None


def main():
    texts = {template: result(template) for template in rows() if template not in DIFFERENT}
    texts = {template: text for template, text in texts.items() if text is None or " at 0x" not in text}
    for template, reason in DIFFERENT.items():
        assert result(template) is not None, f"{template} ({reason}) fails in Jinja2 too"
    fixture = {"context": CONTEXT, "rows": list(texts.items()), "refused": DIFFERENT}
    OUT.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    errors = sum(text is None for text in texts.values())
    print(f"{len(texts)} rows, {errors} of them errors: {OUT.stat().st_size} bytes")


main()
