"""Tests an Octant server, started here, with a real Prometheus: Prometheus scrapes it, promtool checks the
scraped text and the alerts and runs the alerts' tests, every query of the dashboard returns data, and every
alert evaluates.

    prometheus.py OCTANT_BINARY MODEL_DIRECTORY

The server simulates eight GPUs with the model's tokenizer. If Prometheus or promtool is not installed, the
test is skipped, or fails if OCTANT_REQUIRE_PROGRAMS is 1. OCTANT_SKIP_PROMETHEUS=1 skips the test.
"""

import http.client
import json
import math
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOAD_SECONDS = 20
# Warnings of promtool about names that vLLM chose.
KNOWN_LINT = [
    r"metric names should not contain ':'",
    r'(vllm:iteration_tokens_total|vllm:\w+) non-counter metrics should not have "_total" suffix',
    r"^vllm:|^octant_step_prediction_ratio|^process_",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port: int, path: str, **headers: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    return urllib.request.urlopen(request, timeout=10).read().decode()


def wait_for(what: str, port: int, path: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            get(port, path)
            return
        except OSError:
            assert time.monotonic() < deadline, f"{what} is not ready after a minute"
            time.sleep(0.1)


def start_server(binary: str, model: str) -> tuple[subprocess.Popen, int]:
    port = free_port()
    command = [binary, "serve", "--model", model, "--port", str(port), "--served-model-name", "demo"]
    command += ["--device", "simulate", "--tensor-parallel-size", "8", "--simulate-answer-tokens", "40"]
    command += ["--simulate-config", str(ROOT / "models/nemotron-4-340b-instruct")]
    command += ["--max-num-seqs", "16", "--drain-grace", "0"]
    # Turns off the log line of each request.
    process = subprocess.Popen(command, env={**os.environ, "OCTANT_LOG": "warn"})
    wait_for("the server", port, "/health/ready")
    return process, port


def start_prometheus(folder: Path, target: int) -> tuple[subprocess.Popen, int]:
    port = free_port()
    config = f"""
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [{ROOT}/deploy/alerts.yml]
scrape_configs:
  - job_name: octant
    static_configs: [{{ targets: ["127.0.0.1:{target}"] }}]
"""
    (folder / "prometheus.yml").write_text(config)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command)
    wait_for("Prometheus", port, "/-/ready")
    return process, port


def load(port: int, until: float, client: int) -> None:
    system = "You are a helpful assistant who answers in a few words, and says so. " * 8
    turn = 0
    while time.monotonic() < until:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"{client} {turn}?"}]
        body = {"messages": messages, "max_tokens": 60, "n": 1 + turn % 3, "user": f"client-{client % 3}"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).read()
        turn += 1


def poll(port: int, until: float, times: list[float]) -> None:
    """Scrapes every 50 ms over one connection, as a gateway does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    while time.monotonic() < until:
        began = time.monotonic()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        times.append(time.monotonic() - began)
        states = dict(re.findall(r'octant_kv_blocks\{[^}]*state="(\w+)"[^}]*\} (\S+)', text))
        total = int(re.search(r'num_gpu_blocks="(\d+)"', text).group(1))
        assert sum(map(float, states.values())) == total, (states, total)
        time.sleep(0.05)


def query(port: int, expression: str) -> list:
    answer = json.loads(get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
    assert answer["status"] == "success", (expression, answer)
    return answer["data"]["result"]


def check_exposition(port: int) -> None:
    text = get(port, "/metrics", Accept="text/plain")
    lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    # Status 3 means lint warnings, 1 a parse error.
    assert lint.returncode in (0, 3), lint
    unknown = [line for line in lint.stderr.splitlines() if not any(re.search(k, line) for k in KNOWN_LINT)]
    assert not unknown, unknown
    openmetrics = get(port, "/metrics", Accept="application/openmetrics-text")
    assert openmetrics.endswith("# EOF\n") and "# EOF" not in text


def check_dashboard(port: int) -> int:
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    names = json.loads(get(port, "/api/v1/label/model_name/values"))["data"]
    assert names == ["demo"], names
    count = 0
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "15s").replace("$model", ".*")
            values = [float(series["value"][1]) for series in query(port, expression)]
            assert values and not all(map(math.isnan, values)), (panel["title"], expression, values)
            highest = max(value for value in values if not math.isnan(value))
            print(f"  {panel['title']:<48} {target['legendFormat']:<18} {highest:.6g}")
            count += 1
    return count


def check_alerts(port: int) -> int:
    subprocess.run(["promtool", "check", "rules", str(ROOT / "deploy/alerts.yml")], check=True)
    # Each alert has series that fire it and series that do not.
    tests = (ROOT / "deploy/alerts_test.yml").read_text()
    subprocess.run(["promtool", "test", "rules", str(ROOT / "deploy/alerts_test.yml")], check=True)
    groups = json.loads(get(port, "/api/v1/rules"))["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        fires = re.search(rf"alertname: {rule['name']}\n +exp_alerts:\n", tests)
        assert fires, f"no test fires {rule['name']}"
        assert rule["health"] == "ok" and not rule.get("lastError"), rule
        assert rule["state"] != "firing", f"{rule['name']} fires on a healthy server"
        query(port, rule["query"])
        # Without its threshold each alert must find its series; otherwise it could never fire.
        unbounded = re.sub(r" (==|>|<) ", " - ", rule["query"])
        assert query(port, unbounded), f"{rule['name']} finds no series: {unbounded}"
    return len(rules)


def main(binary: str, model: str) -> None:
    if os.environ.get("OCTANT_SKIP_PROMETHEUS") == "1":
        print("skipped: OCTANT_SKIP_PROMETHEUS=1")
        return
    missing = " and ".join(name for name in ("prometheus", "promtool") if shutil.which(name) is None)
    if missing:
        if os.environ.get("OCTANT_REQUIRE_PROGRAMS") == "1":
            sys.exit(f"{missing} not installed; OCTANT_SKIP_PROMETHEUS=1 skips this test")
        print(f"skipped: {missing} not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        server, port = start_server(binary, model)
        prometheus, web = start_prometheus(Path(folder), port)
        try:
            until = time.monotonic() + LOAD_SECONDS
            times: list[float] = []
            threads = [threading.Thread(target=load, args=(port, until, i)) for i in range(8)]
            threads.append(threading.Thread(target=poll, args=(port, until, times)))
            for thread in threads:
                thread.start()
            # Checks run during the load, so that gauges are not 0.
            time.sleep(LOAD_SECONDS - 3)
            target = json.loads(get(web, "/api/v1/targets"))["data"]["activeTargets"][0]
            assert target["health"] == "up" and not target["lastError"], target
            check_exposition(port)
            queries = check_dashboard(web)
            alerts = check_alerts(web)
            for thread in threads:
                thread.join()
            times.sort()
            assert len(times) > LOAD_SECONDS * 5, "scrapes must stay fast under load"
            median, p99 = 1e3 * statistics.median(times), 1e3 * times[len(times) * 99 // 100]
            print(
                f"{queries} queries of the dashboard return data, {alerts} alerts evaluate;"
                f" scraped every 50 ms: median {median:.2f} ms, p99 {p99:.2f} ms;"
                f" Prometheus' own scrape {1e3 * target['lastScrapeDuration']:.2f} ms"
            )
        finally:
            prometheus.send_signal(signal.SIGTERM)
            server.send_signal(signal.SIGTERM)
            prometheus.wait(30)
            server.wait(30)


if __name__ == "__main__":
    main(*sys.argv[1:3])
