#!/usr/bin/env python3
"""Makes tests/data/text/jinja.json: expressions and templates, and what Jinja2 makes of them.

    pip install "transformers==5.*" jinja2
    python scripts/make_jinja_fixtures.py

Further expressions and templates are in tests/data/text/jinja_rows.json. Every row is a template that
transformers compiles (`_compile_jinja_template`) and renders with `CONTEXT`. Its result is the text, or
null where compiling or rendering fails. Rows whose result has the address of an object are left out.
`DIFFERENT` lists the templates that the server refuses although Jinja2 renders them, with the reason.
Running the script again writes the same file.
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
    "boolean", "callable", "defined", "even", "false", "float", "integer", "iterable", "lower",
    "mapping", "none",
    "number", "odd", "sequence", "string", "true", "undefined", "upper", "escaped", "divisibleby 3",
    "divisibleby(0)", "sameas none", "sameas true", "eq 7", "ne(7)", "lt 3", "le 3", "gt 3", "ge 3",
    "in [7, 'a']",
    "in 'Hello, World'", "in d", "equalto('x')", "greaterthan 2", "lessthan(2)",
]

FILTERS = [
    "abs", "attr('upper')", "batch(2)|list", "capitalize", "center(9)", "count", "d('D')",
    "default('D', true)",
    "dictsort", "e", "filesizeformat", "first", "float", "float(1.5)", "format", "groupby('a')", "indent",
    "int", "int(5)", "items|list", "join", "join('-')", "last", "length", "list", "lower",
    "map('string')|list",
    "max", "min", "pprint", "reject|list", "replace('1', '2')", "reverse|list", "round", "round(1)", "safe",
    "select|list", "select('string')|list", "selectattr('a')|list", "rejectattr('a', 'none')|list",
    "slice(2)|list",
    "sort", "sort(reverse=true)", "string", "striptags", "sum", "title", "tojson", "tojson(indent=2)", "trim",
    "truncate(8)", "unique|list", "upper", "urlencode", "wordcount", "xmlattr", "forceescape",
]

OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">="]
OPERATORS += ["in", "not in", "and", "or"]

OPERANDS = ["'ab'", "''", "3", "-2", "2.5", "true", "none", "[1, 2]", "[]", "d", "missing", "(1, 2)"]

ROWS = json.loads((ROOT / "tests" / "data" / "text" / "jinja_rows.json").read_text(encoding="utf-8"))

# Rows for which the server differs, and why. It refuses all of them with an error, most at the start.
DIFFERENT = {
    "{{ -2 ** 2.5 }}": "complex numbers",
    "{{ [u64 * u64, big * big * big] }}": "integers of more than 127 bits",
    "{{ '\\N{BULLET}' }}": "names of characters",
    "{{ s.encode('utf-8') is defined }}": "bytes",
    "{{ self }}": "a reference to the template itself",
    "{% set ns = namespace() %}{% set ns.a, x = 1, 2 %}{{ ns.a }}": "an attribute among several targets",

    "{% for x in l %}{% with y = x %}{% if y == 1 %}{% break %}{% endif %}{{ y }}{% endwith %}{% endfor %}":
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
    yield from (f"{{{{ {expression} }}}}" for expression in ROWS["expressions"])
    yield from ROWS["templates"]


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
