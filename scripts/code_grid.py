"""Prints structural figures of the code: lengths, traits, error types, file cycles, prose.

    python3 scripts/code_grid.py [ROOT]

Figures are counted from the text of the files, without a compiler. Functions are those of Rust files.
"""

import re
import statistics
import sys
from pathlib import Path

MAX_FILE, MAX_FUNCTION, MAX_COLUMNS = 500, 70, 110
# The modules that a request passes through; the rest are tools beside them.
SERVING = [
    "server", "generation", "text", "request", "engine", "scheduler", "runner", "model", "comm", "device",
    "config", "launch", "machine", "lib", "main",
]
FRAGMENT = re.compile(r"(Of|As|At|What|Whoever|Who|Whom|Whose)\b")
RIDDLE = re.compile(
    r"\b(nobody|whoever|whomever|whom|somebody|so many|so long as|in vain|hears? (of|what)|is told)\b", re.I
)
PUBLIC = re.compile(r"^\s*pub (?:const |async |unsafe )*(?:fn|struct|enum|trait|const|type|mod) ", re.M)
SKIPPED = {"target", "demo", ".git", ".venv", ".cuda", "__pycache__", "data"}


def files(root, *endings):
    found = []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).parts
        if path.is_file() and path.name.endswith(endings) and not SKIPPED.intersection(inside):
            found.append(path)
    return found


def code(line):
    """The line without a trailing comment. A `//` within a string counts as one, which is rare."""
    return line.split("//")[0]


def functions(text):
    """(name, lines) of every function with a body. Braces are matched from the signature on."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        found = re.match(r"\s*(?:pub(?:\([^)]*\))? )?(?:const |async |unsafe )*fn (\w+)", code(line))
        if not found:
            continue
        depth, opened = 0, False
        for end in range(start, len(lines)):
            part = re.sub(r"'[{}]'|\"(?:\\.|[^\"\\])*\"", "", code(lines[end]))
            depth += part.count("{") - part.count("}")
            opened |= "{" in part
            if not opened and part.rstrip().endswith(";"):
                break
            if opened and depth <= 0:
                yield found.group(1), end - start + 1
                break


def public_traits(text):
    """(name, methods) of every trait that is public."""
    for found in re.finditer(r"^pub trait (\w+)[^{]*\{(.*?)^\}", text, re.M | re.S):
        yield found.group(1), len(re.findall(r"^    (?:async |unsafe )?fn ", found.group(2), re.M))


def expand(tree, prefix=()):
    """The paths of a `use` tree, braces expanded."""
    tree = tree.strip()
    head, brace, rest = tree.partition("{")
    prefix = prefix + tuple(part for part in head.strip().strip(":").split("::") if part)
    if not brace:
        return [tuple(part.split(" as ")[0].strip() for part in prefix)]
    depth, part, parts = 0, "", []
    for char in rest[: rest.rindex("}")]:
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += char
    return [path for inner in parts + [part] if inner.strip() for path in expand(inner, prefix)]


def module_of(path, source):
    parts = path.relative_to(source).with_suffix("").parts
    return parts[:-1] if parts[-1] == "mod" else parts


def file_cycles(root):
    """Groups of files of one top-level module that import one another.

    Module roots do not count: they declare and re-export what their files define.
    """
    source = root / "src"
    modules = {module_of(path, source): path for path in files(source, ".rs")}
    edges = {path: set() for path in modules.values()}
    for own, path in modules.items():
        text = "\n".join(code(line) for line in path.read_text().splitlines())
        text = re.sub(r"#\[cfg\(test\)\]\s*mod \w+ \{.*?^\}", "", text, flags=re.M | re.S)
        for tree in re.findall(r"^\s*use ((?:crate|super|self)\b[^;]*);", text, re.M):
            for parts in expand(tree):
                base = own
                while parts and parts[0] in ("crate", "super", "self"):
                    base = () if parts[0] == "crate" else base[:-1] if parts[0] == "super" else base
                    parts = parts[1:]
                full = base + parts
                target = next((full[:n] for n in range(len(full), 0, -1) if full[:n] in modules), None)
                if target and target != own and target[0] == own[0]:
                    edges[path].add(modules[target])
    # A module root is an ancestor of its files.
    roots = {
        path
        for module, path in modules.items()
        if any(m[: len(module)] == module and m != module for m in modules)
    }
    cycles, seen = [], set()
    reach = {}
    for start in edges:
        todo, found = [start], set()
        while todo:
            for other in edges[todo.pop()] - roots:
                if other not in found:
                    found.add(other)
                    todo.append(other)
        reach[start] = found
    for start in edges:
        group = {start} | {other for other in reach[start] if start in reach[other]}
        if len(group) > 1 and start not in seen and start not in roots:
            seen |= group
            cycles.append(sorted(str(path.relative_to(source)) for path in group))
    return cycles


def tuple_parameters(text):
    """Functions one of whose parameters is a tuple taken apart in the signature."""
    return len(re.findall(r"fn \w+[^{;]*?[(,]\s*\(\w[^():]*\): \(", text))


def comments(text):
    """Blocks of consecutive comment lines, doc comments and others, without their markers."""
    block = []
    for line in text.splitlines() + [""]:
        found = re.match(r"\s*//[/!]? ?(.*)", line)
        if found:
            block.append(found.group(1))
        elif block:
            yield "\n".join(block)
            block = []


def docs(text):
    for found in re.finditer(r"(?:^[ \t]*//[/!][^\n]*\n?)+", text, re.M):
        yield re.sub(r"^[ \t]*//[/!] ?", "", found.group(0), flags=re.M).strip()


def report(root):
    source = root / "src"
    rust = files(source, ".rs")
    texts = {path: path.read_text() for path in rust}
    everything = files(root, ".rs", ".py", ".cu", ".cuh", ".cpp", ".h")
    lengths = [(lines, name, path) for path in rust for name, lines in functions(texts[path])]
    lines_of = {path: text.count("\n") for path, text in texts.items()}
    tables = files(root, ".md")
    wide = sum(len(line) > MAX_COLUMNS for path in everything for line in path.read_text().splitlines())
    wide += sum(len(line) > MAX_COLUMNS and not line.startswith("|") for path in tables
                for line in path.read_text().splitlines())
    all_docs = [doc for text in texts.values() for doc in docs(text)]
    fragments = [doc for doc in all_docs if FRAGMENT.match(doc)]
    prose = [path.read_text() for path in everything]
    riddles = [block for text in prose for block in comments(text) if RIDDLE.search(block)]
    traits = [(name, count) for text in texts.values() for name, count in public_traits(text)]
    serving = sum(lines for path, lines in lines_of.items()
                  if path.relative_to(source).parts[0].removesuffix(".rs") in SERVING)
    joined = "\n".join(texts.values())
    cycles = file_cycles(root)
    rows = [
        (f"files over {MAX_FILE} lines", sum(path.read_text().count("\n") > MAX_FILE for path in everything)),
        ("function lines, 90th percentile", round(statistics.quantiles([l for l, *_ in lengths], n=10)[-1])),
        (f"functions over {MAX_FUNCTION} lines", sum(lines > MAX_FUNCTION for lines, _, _ in lengths)),
        ("public traits", ", ".join(f"{name} {count}" for name, count in traits)),
        ("cfg(feature) sites", len(re.findall(r"cfg!?\([^\n]*feature = ", joined))),
        ("functions with tuple parameters", sum(tuple_parameters(text) for text in texts.values())),
        ("error types", len(re.findall(r"derive\([^)]*\bError\b", joined))),
        ("Result<_, String>", len(re.findall(r"Result<[^\n]*, String>", joined))),
        ("public items", len(PUBLIC.findall(joined))),
        ("file cycles within modules", len(cycles)),
        (f"lines over {MAX_COLUMNS} columns", wide),
        ("doc comments", len(all_docs)),
        ("doc comments that leave out the subject", f"{100 * len(fragments) / len(all_docs):.1f} %"),
        ("comment blocks with riddles", len(riddles)),
        ("src lines", sum(lines_of.values())),
        ("src lines of the serving path", serving),
    ]
    for name, figure in rows:
        print(f"{name:42} {figure}")
    for lines, name, path in lengths:
        if lines > MAX_FUNCTION:
            print(f"  over {MAX_FUNCTION} lines: {name} of {path.relative_to(root)}, {lines} lines")
    for cycle in cycles:
        print(f"  cycle: {' '.join(cycle)}")


if __name__ == "__main__":
    report(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
