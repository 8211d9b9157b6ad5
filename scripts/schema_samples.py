"""Samples answers to JSON schemas by `benches/json_schemas.rs` and validates them with `jsonschema`."""

import collections
import decimal
import json
import pathlib
import re
import subprocess
import tempfile

import jsonschema
import referencing.exceptions

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "demo" / "smollm2-135m-instruct"
# The greatest exponent of a number that is validated as it stands. Python's decimal numbers end at another.
MOST_EXPONENT = 4000
# Complete answers to each schema; the program stops after 100 answers.
SAMPLES = 20
# Digits of a quotient of such a number and of one of a schema.
decimal.getcontext().prec = 3 * MOST_EXPONENT


def sample(schemas, compile_only=False):
    """The program's answer to each schema: {"error"} or {"samples"}."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = pathlib.Path(folder, "schemas"), pathlib.Path(folder, "answers")
        lines = ({"schema": schema, "sample": not compile_only} for schema in schemas)
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = ["cargo", "bench", "--quiet", "--profile", "dev", "--bench", "json_schemas", "--"]
        subprocess.run([*command, MODEL, source, output], cwd=ROOT, check=True)
        return [json.loads(line) for line in output.read_text().rstrip("\n").split("\n")]


def place(error):
    """The keywords that an error names, and the JSON pointer of their schema; None if it names none."""
    match = re.fullmatch(r"([\w$, -]+): .* \(at #(.*)\)", error, re.DOTALL)
    return match and (match[1].split(", "), match[2])


def without(schema, keywords, pointer):
    """The schema without these keywords of its part at the pointer; None if they do not stand there."""
    copy = json.loads(json.dumps(schema))
    part = copy
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        try:
            part = part[int(step) if isinstance(part, list) else step]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    if not isinstance(part, dict) or any(keyword not in part for keyword in keywords):
        return None
    for keyword in keywords:
        del part[keyword]
    return copy


def misnamed(refused):
    """Those of (name, error, schema) whose error is the same without the keywords that it names, or that
    names none. An error of the schema `false` names no keyword."""
    found, mended = [], []
    for name, error, schema in refused:
        named = place(error)
        changed = without(schema, *named) if named else None
        if changed is not None:
            mended.append((name, error, schema, changed))
        elif schema is not False:
            found.append((name, error, schema))
    answers = sample([changed for *_, changed in mended], compile_only=True) if mended else []
    for (name, error, schema, _), answer in zip(mended, answers, strict=True):
        if answer.get("error") == error:
            found.append((name, error, schema))
    return found


def has_repeated_names(text):
    """Whether an object of the answer has a name twice, which JSON schemas say nothing about."""
    found = []
    json.loads(text, object_pairs_hook=lambda pairs: found.append(len(dict(pairs)) < len(pairs)))
    return any(found)


def exact(value):
    """A schema or an answer with decimal numbers: binary fractions are no multiples of 0.01."""
    return json.loads(json.dumps(value), parse_float=decimal.Decimal)


def is_integer(_checker, value):
    whole = isinstance(value, decimal.Decimal) and value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool) or whole


def number(text):
    """A number of an answer. A greater exponent counts as MOST_EXPONENT: it is beyond every bound too, and
    leaves an integer an integer and a multiple of a power of ten one."""
    digits, _, exponent = text.lower().partition("e")
    exponent = max(-MOST_EXPONENT, min(int(exponent or 0), MOST_EXPONENT))
    return decimal.Decimal(f"{digits}e{exponent}")


def pattern(validator, expression, value, schema):
    r"""`pattern` as ECMA-262 reads it: `\d` and `\w` are ASCII, unlike `\s`."""
    flags = 0 if "\\s" in expression.lower() else re.ASCII
    if validator.is_type(value, "string") and not re.search(expression, value, flags):
        yield jsonschema.ValidationError(f"{value!r} does not match {expression!r}")


def fault(text, validator):
    """Why an answer is invalid, or None."""
    try:
        value = json.loads(text, parse_float=number)
    except ValueError as error:
        return f"no JSON: {error}"
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return error and f"{error.validator}: {error.message[:200]}"


def report(named_schemas, draft, formats, shown):
    """Samples and validates, prints counts, and returns whether every answer is valid, every schema has a
    complete answer, and every refusal names keywords without which the schema has another error or none."""
    schemas = [schema for _, schema in named_schemas]
    answers = sample(schemas)
    checker = draft.FORMAT_CHECKER if formats else None
    types = draft.TYPE_CHECKER.redefine("integer", is_integer)
    exact_draft = jsonschema.validators.extend(draft, {"pattern": pattern}, type_checker=types)
    ends, refusals, refused, invalid = collections.Counter(), collections.Counter(), [], []
    unchecked, counts = {}, {}
    accepted = valid = repeated = 0
    for (name, schema), answer in zip(named_schemas, answers, strict=True):
        if "error" in answer:
            error = answer["error"]
            refusals[reason(error)] += 1
            refused.append((name, error, schema))
            continue
        accepted += 1
        counts[name] = sum(end == "complete" for _, end in answer["samples"])
        validator = exact_draft(exact(schema), format_checker=checker)
        for text, end in answer["samples"]:
            ends[end] += 1
            if end != "complete":
                continue
            try:
                why = fault(text, validator)
            except (referencing.exceptions.Unresolvable, re.error) as error:
                unchecked[name] = repr(error)
                continue
            valid += why is None
            repeated += why is None and has_repeated_names(text)
            if why:
                invalid.append((name, why, text, schema))
    unnamed = misnamed(refused)
    complete = ends["complete"]
    print(f"schemas {len(schemas)}, accepted {accepted}, refused {len(schemas) - accepted}")
    others = dict(ends - collections.Counter(complete=complete))
    print(f"samples {ends.total()}, complete {complete}, other ends {others}")
    print(f"valid {valid}, invalid {len(invalid)} in {len({name for name, *_ in invalid})} schemas")
    few = {name: count for name, count in counts.items() if count < SAMPLES}
    least = min(counts.values(), default=0)
    print(f"least complete answers to a schema: {least}; under {SAMPLES}: {len(few)} schemas")
    for name, count in few.items():
        print(f"  {count:2} complete: {name}")
    print(f"valid answers with a repeated name in an object: {repeated}")
    for name, error in unchecked.items():
        print(f"  the validator cannot read it: {name}: {error}")
    for text, count in refusals.most_common():
        print(f"  refused {count:4}: {text}")
    print(f"refusals that name other keywords, or none: {len(unnamed)}")
    for name, error, schema in unnamed:
        print(f"  misnamed: {name}: {error}: {json.dumps(schema)[:300]}")
    seen = collections.Counter()
    for name, why, text, schema in invalid:
        seen[name] += 1
        if seen[name] <= shown:
            print(f"  invalid: {name}: {why}\n    {text[:300]!r}\n    {json.dumps(schema)[:400]}")
    return not invalid and not unnamed and all(counts.values()) and set(ends) <= {"complete", "cut"}


def reason(error):
    """An error without the parts that differ between schemas."""
    return re.sub(r"(, got '.*')? \((at|within) #.*\)$", "", error)[:90]
