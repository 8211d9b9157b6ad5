#!/usr/bin/env python3
"""Samples answers to every schema of the JSON-Schema-Test-Suite, and validates them.

    pip install jsonschema==4.26.0
    python scripts/json_schema_suite.py [--draft draft7]

The suite comes from the source package of `jsonschema` on PyPI. Needs the demo model's tokenizer
(`scripts/demo_model.py`). The validator is `jsonschema`, without checks of formats: they are annotations in
this draft. Exits with status 1 if an answer is invalid, a schema has no complete answer, or a refusal does
not name the keyword at fault.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import jsonschema
from schema_samples import report

PACKAGE = "jsonschema==4.26.0"
DRAFTS = {"draft2020-12": jsonschema.Draft202012Validator, "draft7": jsonschema.Draft7Validator}


def suite(draft):
    """(name, schema) of each test group of a draft, without repetitions."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
        with tarfile.open(next(pathlib.Path(folder).glob("*.tar.gz"))) as package:
            package.extractall(folder, filter="data")
        tests = next(pathlib.Path(folder).glob(f"*/json/tests/{draft}"))
        found = {}
        for file in sorted(tests.rglob("*.json")):
            for group in json.loads(file.read_text()):
                name = f"{file.relative_to(tests)}: {group['description']}"
                found.setdefault(json.dumps(group["schema"]), name)
        return [(name, json.loads(schema)) for schema, name in found.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draft", choices=DRAFTS, default="draft2020-12")
    parser.add_argument("--shown", type=int, default=1, help="invalid answers to print for each schema")
    args = parser.parse_args()
    is_good = report(suite(args.draft), DRAFTS[args.draft], formats=False, shown=args.shown)
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
