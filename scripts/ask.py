#!/usr/bin/env python3
"""Asks a running server one question and prints the answer as it streams. Standard library only.

    python3 scripts/ask.py URL QUESTION         asks
    python3 scripts/ask.py URL --ready          prints nothing; exits with 0 if the server is ready, else 1
"""

import json
import sys
import urllib.request


def ready(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health/ready", timeout=2).status == 200
    except OSError:
        return False


def ask(url: str, question: str) -> None:
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for line in urllib.request.urlopen(request):
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
    print()


if __name__ == "__main__":
    if sys.argv[2] == "--ready":
        sys.exit(0 if ready(sys.argv[1]) else 1)
    ask(sys.argv[1], sys.argv[2])
