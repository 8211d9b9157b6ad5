#!/usr/bin/env python3
"""Measures what speculative decoding gains, by task and by number of requests at once.

Two or more servers of one model run side by side, one without and the others with speculative decoding, and
take turns: only one of them has requests at a time. Their answers are compared: every text must be the same.

    python3 scripts/speculation.py DIR [--speculate ngram,DRAFT_DIR] [--octant FILE] [--json FILE]
                                       [-- FLAGS OF ALL SERVERS]

With one request at once, "most" is the ratio that the counted drafts would have with the step times that the
server measured at its start, if nothing but decode steps took time.

On a machine that is not quiet, `--cpu-time` with `-- --threads 1` gives tokens per second of the server's CPU
time.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

TEXT = """The lighthouse at Cape Morrow was built in 1872 by the engineer Anna Lindqvist. It stands forty \
metres above the sea and its lamp can be seen from thirty kilometres away. For ninety years a \
keeper lived in the small house beside the tower. The last keeper, Anna's great-grandson Peter, \
left in 1962, when the lamp became automatic. Today the house is a museum. Visitors can climb the \
two hundred steps to the gallery, look at the old clockwork that turned the lens, and read the \
keepers' diaries. The museum is open from May to October, and the ticket costs six euros."""
CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance
"""
EDITS = [("Anna", "Maria"), ("lighthouse", "windmill"), ("1872", "1901"), ("museum", "school"),
         ("Peter", "Oscar"), ("forty", "sixty"), ("euros", "dollars"), ("Cape Morrow", "Port Ellis")]
FUNCTIONS = ["reverses a string", "computes the factorial of n", "checks whether a number is prime",
             "merges two sorted lists", "counts the words of a file", "finds the largest item of a list",
             "computes the greatest common divisor", "sorts a list by bubble sort"]
QUESTIONS = ["What is the capital of France, and what is it known for?", "How does a bicycle stay upright?",
             "Give me three tips for sleeping well.", "Why is the sky blue?",
             "Write a short poem about rain.",
             "What should I cook with potatoes and eggs?", "Explain what a black hole is to a child.",
             "Who wrote Hamlet, and what is it about?"]
RECORDS = {
    "person": {"name": "string", "age": "integer", "occupation": "string", "is_married": "boolean"},
    "book": {"title": "string", "author": "string", "pages": "integer", "is_fiction": "boolean"},
    "city": {"name": "string", "country": "string", "population": "integer", "has_airport": "boolean"},
    "animal": {"species": "string", "weight_in_kilograms": "number", "legs": "integer", "is_wild": "boolean"},
}


def chat(text, **fields):
    return {"messages": [{"role": "user", "content": text}], **fields}


def by_schema(record, **fields):
    """A request for three records as JSON that follows a schema."""
    properties = {name: {"type": kind} for name, kind in RECORDS[record].items()}
    one = {"type": "object", "properties": properties, "required": list(properties),
           "additionalProperties": False}
    three = {"type": "array", "items": one, "minItems": 3, "maxItems": 3}
    schema = {"type": "object", "properties": {"records": three}, "required": ["records"],
              "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": record, "schema": schema, "strict": True}}
    return chat(f"Invent three examples of a {record}. Answer in JSON.", response_format=form, **fields)


def tasks():
    """The request bodies of each task."""
    greedy, random = {"temperature": 0}, {"temperature": 0.7, "seed": 11}
    edit = "Copy the following text, but write %s instead of %s. Answer with the text only.\n\n%s"
    rename = "Rename the method %s to %s in this code. Answer with the whole code only.\n\n%s"
    names = [("deposit", "pay_in"), ("withdraw", "pay_out"), ("deposit", "add"), ("withdraw", "take")]
    return {
        "edit a text": [chat(edit % (new, old, TEXT), **greedy) for old, new in EDITS],
        "edit code": [
            chat(rename % (old, new, CODE), **kind) for old, new in names for kind in (greedy, random)
        ],
        "write code": [chat(f"Write a Python function that {what}, with an example.", **greedy)
                       for what in FUNCTIONS],
        "chat, greedy": [chat(question, **greedy) for question in QUESTIONS],
        "chat, random": [chat(question, **random) for question in QUESTIONS],
        "JSON by a schema": [by_schema(record, **kind) for record in RECORDS for kind in (greedy, random)],
    }


class Server:
    cpu_time = False

    def __init__(self, octant, directory, method, flags):
        self.method = method
        command = [octant, "serve", directory, "--port", "0", "--served-model-name", "m",
                   "--stop-with-stdin", "true", "--speculate", method, *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.url = f"http://127.0.0.1:{found.group(1)}"
                break
        else:
            raise SystemExit("".join(self.log))
        ThreadPoolExecutor(1).submit(self.log.extend, self.process.stderr)
        while True:
            try:
                urllib.request.urlopen(self.url + "/health/ready").read()
                return
            except OSError:
                time.sleep(0.05)

    def answer(self, body):
        request = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        reply = json.load(urllib.request.urlopen(request))
        return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]

    def drafts(self):
        """Drafts fed, drafts accepted, and rows that had drafts."""
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        names = ["num_draft_tokens_total", "num_accepted_tokens_total", "num_drafts_total"]
        found = [re.search(rf"^vllm:spec_decode_{name}{{.*}} (\S+)", text, re.M) for name in names]
        return [float(match.group(1)) for match in found]

    def seconds(self, of):
        """Seconds that the server measured at its start, by number of rows: of a `step`, or of a `pass` of
        the draft model."""
        found = re.search(rf"milliseconds of a {of}[^:]*: (.*)", "".join(self.log))
        pairs = [pair.split() for pair in found.group(1).split(", ")]
        return {int(rows): float(milliseconds) / 1e3 for rows, milliseconds in pairs}

    def most(self, tokens, fed, accepted, drafted):
        """The ratio of tokens per second that these drafts allow at most. `drafted` steps fed `fed` drafts in
        all, of which `accepted` were accepted; the other steps had one row. All steps gave `tokens` tokens.
        Steps with drafts are taken to have had equally many, the best case."""
        step = self.seconds("step")
        if not drafted:
            return 1
        rows = 1 + fed / drafted
        few = max(count for count in step if count <= rows)
        many = min((count for count in step if count >= rows), default=few)
        share = (rows - few) / (many - few) if many > few else 0
        with_drafts = step[few] + share * (step[many] - step[few])
        passes = 0 if self.method == "ngram" else fed * self.seconds("pass")[1]
        return tokens * step[1] / ((tokens - accepted - drafted) * step[1] + drafted * with_drafts + passes)

    def clock(self):
        """Seconds: of the wall, or of the server's CPU time."""
        if not self.cpu_time:
            return time.monotonic()
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self, bodies, at_once):
        """Texts, their tokens, tokens per second, and the drafts of the run."""
        before = self.drafts()
        begin = self.clock()
        with ThreadPoolExecutor(at_once) as pool:
            answers = list(pool.map(self.answer, bodies))
        took = self.clock() - begin
        drafts = [after - before for after, before in zip(self.drafts(), before)]
        tokens = sum(tokens for _, tokens in answers)
        return [text for text, _ in answers], tokens, tokens / took, drafts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--octant", default="target/release/octant")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--at-once", default="1,4,16")
    parser.add_argument("--tasks", help="only these, separated by semicolons")
    parser.add_argument("--speculate", default="ngram", help="methods, separated by commas")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json")
    # argparse takes no flags of another program after its own.
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[:own.index("--")], own[own.index("--") + 1:]
    args = parser.parse_args(own)
    Server.cpu_time = args.cpu_time
    plain = Server(args.octant, args.directory, "off", flags)
    drafting = [Server(args.octant, args.directory, method, flags) for method in args.speculate.split(",")]
    servers = [plain, *drafting]
    rows = []
    print("| task | requests at once | drafts | off, tokens/s | with, tokens/s | ratio | most | accepted |")
    print("|---|---|---|---|---|---|---|---|")
    for task, bodies in tasks().items():
        if args.tasks and task not in args.tasks.split(";"):
            continue
        bodies = [{**body, "model": "m", "max_tokens": args.max_tokens} for body in bodies]
        for at_once in map(int, args.at_once.split(",")):
            several = bodies * max(1, at_once // len(bodies))
            rates = {server: [] for server in servers}
            counts = {server: [0, 0, 0] for server in servers}
            generated = 0
            texts = {}
            for turn in range(args.rounds + 1):
                for server in servers if turn % 2 else reversed(servers):
                    texts[server], tokens, rate, drafts = server.run(several, at_once)
                    # The first turn fills the prefix cache.
                    if turn > 0:
                        rates[server].append(rate)
                        counts[server] = [sum(pair) for pair in zip(counts[server], drafts)]
                # All servers generate the same. An answer's first token comes from the step of its prompt.
                generated += (tokens - len(several)) * (turn > 0)
            for server in drafting:
                method = server.method
                assert texts[plain] == texts[server], f"{task}: the answers differ with {method}"
                off, drafted = (statistics.median(rates[of]) for of in (plain, server))
                ratio = statistics.median(b / a for a, b in zip(rates[plain], rates[server]))
                fed, accepted, with_drafts = counts[server]
                most = server.most(generated, fed, accepted, with_drafts) if at_once == 1 else None
                share = accepted / fed if fed else 0
                name = method if method == "ngram" else "model"
                shown = f"{most:.2f}" if most else ""
                print(f"| {task} | {at_once} | {name} | {off:.0f} | {drafted:.0f} | {ratio:.2f} | {shown} | "
                      f"{accepted:.0f} of {fed:.0f} ({100 * share:.0f} %) |", flush=True)
                rows.append({"task": task, "at_once": at_once, "method": method, "off": rates[plain],
                             "with": rates[server], "ratio": ratio, "most": most, "fed": fed,
                             "accepted": accepted})
    for server in servers:
        server.process.stdin.close()
        server.process.wait()
    for server in drafting:
        found = [line.strip() for line in server.log if "milliseconds of a" in line]
        print("\n".join(found))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
