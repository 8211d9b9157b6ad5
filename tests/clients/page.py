"""Tests the page at `/` in a headless Chromium: a chat is streamed, stopped, continued and coloured by
keyboard alone; text with markup stays text; a page of another origin reaches nothing.

    page.py OCTANT_BINARY MODEL_DIRECTORY [SCREENSHOT_DIRECTORY]

The server simulates GPUs with the model's tokenizer and template. If Chromium is not installed, the test is
skipped, or fails if OCTANT_REQUIRE_PROGRAMS is 1. OCTANT_SKIP_BROWSER=1 skips the test.
"""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import browser
from browser import SHIFT, Browser
from harness import KEY, Process

ROOT = Path(__file__).resolve().parents[2]
MARKUP = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
TESTS = []


def test(function):
    TESTS.append(function)
    return function


def fetched(url: str) -> str:
    try:
        return urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        return ""


class Server(Process):
    """A server whose answers are long. A step takes about as long as on a GPU."""

    def __init__(self, binary: str, model: str, *more: str) -> None:
        flags = ["--served-model-name", "demo", "--device", "simulate", "--tensor-parallel-size", "8"]
        flags += ["--simulate-answer-tokens", "5000"]
        flags += ["--simulate-config", str(ROOT / "models/nemotron-4-340b-instruct"), *more]
        super().__init__(binary, model, *flags)

    def get(self, path: str) -> str:
        return fetched(self.root + path)

    def metric(self, name: str) -> float:
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name + "{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


ANSWER = "[...document.querySelectorAll('.assistant .text')].at(-1)"
TEXT = f"{ANSWER}.textContent"
IDLE = "document.getElementById('stop').hidden"
FIGURES = "[...document.querySelectorAll('.figures')].at(-1).textContent"


@test
def a_server_with_a_key_asks_for_it(tab: Browser, server: Server) -> None:
    tab.open(server.root)
    tab.until("document.getElementById('notice').textContent.includes('needs an API key')")
    tab.until("document.activeElement.id === 'key'")
    tab.type(KEY)
    tab.press("Enter")
    tab.until("document.getElementById('model').value === 'demo'")
    assert tab.value("document.getElementById('notice').hidden")
    kept = tab.value("[sessionStorage.getItem('octant.key'), localStorage.length, document.cookie]")
    assert kept == [KEY, 0, ""], kept


@test
def an_answer_is_streamed_stopped_and_continued_by_keyboard(tab: Browser, server: Server) -> None:
    tab.tab_to("prompt")
    tab.type("one")
    tab.press("Enter", SHIFT)
    tab.type("two")
    tab.press("Enter")
    tab.until(f"{TEXT}.length > 40")
    assert tab.value("document.querySelector('.user .text').textContent") == "one\ntwo"
    assert tab.value("document.getElementById('transcript').getAttribute('aria-busy')") == "true"
    assert server.metric("vllm:num_requests_running") == 1
    tab.press("Escape")
    tab.until(IDLE)
    stopped = tab.value(TEXT)
    figures = tab.value(FIGURES)
    assert "stopped" in figures and "out" in figures and "tokens/s" in figures, figures
    deadline = time.monotonic() + 30
    while server.metric("vllm:num_requests_running") > 0:
        assert time.monotonic() < deadline, "a stopped answer still runs"
        time.sleep(0.05)
    tab.tab_to("Continue")
    tab.press("Enter")
    tab.until(f"{TEXT}.length > {len(stopped) + 40}")
    assert tab.value(TEXT).startswith(stopped)
    tab.press("Escape")
    tab.until(IDLE)


@test
def sampling_settings_reach_the_server(tab: Browser, server: Server) -> None:
    tab.value("document.querySelector('[name=max_tokens]').focus()")
    tab.type("12")
    tab.value("document.querySelector('[name=seed]').focus()")
    tab.type("9007199254740993")
    tab.value("document.querySelector('[name=temperature]').focus()")
    tab.type("0,5")
    sent = intercepted(tab, {}, lambda: regenerate(tab))
    assert (sent["max_tokens"], sent["seed"], sent["temperature"]) == (12, 9007199254740993, 0.5), sent
    assert "top_p" not in sent and "logprobs" not in sent, sent
    tab.until(f"{IDLE} && {FIGURES}.includes('12 out')")
    assert "token limit reached" in tab.value(FIGURES)


@test
def a_refused_field_is_named_and_marked(tab: Browser, server: Server) -> None:
    tab.value("document.querySelector('[name=top_p]').focus()")
    tab.type("7")
    regenerate(tab)
    tab.until("document.querySelector('.fault')?.textContent.includes('top_p: expected')")
    assert "field top_p" in tab.value("document.querySelector('.fault .detail').textContent")
    assert tab.value("document.querySelector('[name=top_p]').getAttribute('aria-invalid')") == "true"
    tab.value("document.querySelector('[name=top_p]').value = ''")
    tab.tab_to("Try again")
    tab.press(" ")
    tab.until(f"{IDLE} && {FIGURES}.includes('12 out')")
    assert tab.value("document.querySelectorAll('.fault').length") == 0


@test
def a_full_queue_shows_the_wait(tab: Browser, server: Server) -> None:
    # The response of a server whose queue is full, which would take a hundred clients to cause.
    tab.value("""(() => {
      const real = window.fetch;
      const error = {message: 'The queue is full.', param: null, code: 'queue_full'};
      window.fetch = (path, options) => {
        if (path !== 'v1/chat/completions') return real(path, options);
        window.fetch = real;
        return new Response(JSON.stringify({error}), {status: 429, headers: {'retry-after': '2'}});
      };
    })()""")
    regenerate(tab)
    tab.until("document.querySelector('.fault .detail')?.textContent.includes('HTTP 429 · queue_full')")
    assert "The queue is full." in tab.value("document.querySelector('.fault').textContent")
    tab.until("document.querySelector('.fault .detail').textContent.endsWith('try again now')")
    tab.tab_to("Try again")
    tab.press("Enter")
    tab.until(f"{IDLE} && {FIGURES}.includes('12 out')")


@test
def tokens_show_their_alternatives(tab: Browser, server: Server) -> None:
    tab.tab_to("colour")
    tab.press(" ")
    regenerate(tab)
    tab.until(f"{IDLE} && document.querySelectorAll('.t').length > 12")
    tokens = tab.value(f"[...{ANSWER}.querySelectorAll('.t')].map((t) => t.textContent)")
    assert len(tokens) == 12 and "".join(tokens) == tab.value(TEXT), tokens
    tab.value("document.getElementById('prompt').focus()")
    for _ in range(80):
        if tab.value("document.activeElement.classList.contains('t')"):
            break
        tab.press("Tab")
    tab.press("ArrowRight")
    assert tab.value("document.activeElement.textContent") == tokens[1]
    shown = tab.value("[...document.querySelectorAll('.popover th')].map((name) => name.textContent)")
    assert len(shown) >= 3 and tab.value("document.querySelectorAll('.popover .chosen').length") == 1, shown
    assert "%" in tab.value("document.querySelector('.popover').textContent")
    tab.press("Escape")
    assert tab.value("document.getElementById('popover').hidden")


@test
def markup_stays_text(tab: Browser, server: Server) -> None:
    tab.value("document.querySelector('[name=max_tokens]').value = '90'")
    for colour in [True, False]:
        if tab.value("document.getElementById('colour').checked") != colour:
            tab.value("document.getElementById('colour').click()")
        tab.value("document.getElementById('prompt').focus()")
        tab.type(MARKUP)
        # The model has to answer with markup too.
        sent = intercepted(tab, {"guided_choice": [MARKUP]}, lambda: tab.press("Enter"))
        assert sent["messages"][-1] == {"role": "user", "content": MARKUP}
        tab.until(f"{IDLE} && {TEXT} !== ''")
        assert tab.value(TEXT) == MARKUP
        user = "[...document.querySelectorAll('.user .text')].at(-1)"
        assert tab.value(f"{user}.textContent") == MARKUP
        assert tab.value(f"{user}.childElementCount") == 0
    found = tab.value("document.querySelectorAll('img, #transcript script').length")
    assert (found, tab.value("document.title")) == (0, "Octant")


@test
def the_load_is_drawn(tab: Browser, server: Server) -> None:
    tab.until("document.querySelectorAll('#plots .line[d]').length === 4")
    assert not tab.value("document.getElementById('load').hidden")


@test
def the_page_is_shown_in_both_themes_and_on_a_phone(tab: Browser, server: Server) -> None:
    for name, width, height in [("desktop", 1280, 800), ("phone", 390, 844)]:
        tab.size(width, height)
        for theme in ["light", "dark"]:
            tab.theme(theme)
            # A page wider than the window would scroll sideways.
            assert tab.value("document.documentElement.scrollWidth <= window.innerWidth"), name
            tab.screenshot(SCREENSHOTS / f"{name}-{theme}.png")
            contrast = tab.contrast()
            assert contrast["least"] >= 4.5, f"{theme} {name}: {contrast}"
    tab.size(1280, 800)


@test
def a_new_chat_is_empty(tab: Browser, server: Server) -> None:
    tab.tab_to("clear")
    tab.press("Enter")
    tab.until("document.querySelectorAll('.turn').length === 0")
    assert tab.value("document.activeElement.id") == "prompt"


@test
def nothing_failed_or_was_blocked(tab: Browser, server: Server) -> None:
    # The browser reports the refused requests of the tests above.
    refused = ["401 (Unauthorized)", "400 (Bad Request)"]
    found = [text for text in tab.complaints() if not any(status in text for status in refused)]
    assert not found, found


def a_model_without_a_template_continues_text(tab: Browser, binary: str, model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for file in Path(model).iterdir():
            if file.suffix == ".json" and "index" not in file.name:
                shutil.copy(file, folder)
        path = Path(folder) / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config.pop("chat_template", None)
        path.write_text(json.dumps(config))
        server = Server(binary, folder)
        continues_text(tab, server.root)
        the_page_works_below_a_path_of_a_proxy(tab, server)
        a_foreign_page_reaches_nothing(tab, server)
        server.stop()


def continues_text(tab: Browser, root: str) -> None:
    tab.open(root)
    tab.until("document.getElementById('model').value === 'demo'")
    tab.value("document.querySelector('[name=max_tokens]').value = '5'")
    tab.value("document.getElementById('prompt').focus()")
    tab.type("Once upon")
    tab.press("Enter")
    tab.until(f"{IDLE} && {FIGURES}.includes('5 out')")
    assert "no chat template" in tab.value("document.getElementById('notice').textContent")


NGINX = """
daemon off; pid FOLDER/pid; error_log stderr warn; events {}
http {
    access_log off;
    client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy; fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi; scgi_temp_path FOLDER/scgi;
    server {
        listen 127.0.0.1:PORT;
        location /models/octant/ {
            proxy_pass ROOT/;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_buffering off;
        }
    }
}
"""


def the_page_works_below_a_path_of_a_proxy(tab: Browser, server: Server) -> None:
    nginx = shutil.which("nginx")
    if not nginx:
        assert os.environ.get("OCTANT_REQUIRE_PROGRAMS") != "1", "nginx is not installed"
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        config = Path(folder, "nginx.conf")
        text = NGINX.replace("FOLDER", folder).replace("PORT", str(port)).replace("ROOT", server.root)
        config.write_text(text)
        process = subprocess.Popen([nginx, "-e", "stderr", "-p", folder, "-c", str(config)])
        try:
            root = f"http://127.0.0.1:{port}/models/octant"
            deadline = time.monotonic() + 30
            while not fetched(root + "/health/ready"):
                assert time.monotonic() < deadline, "nginx does not answer"
                time.sleep(0.05)
            # nginx sends a browser without the last slash to the address with it.
            continues_text(tab, root)
            assert tab.value("location.pathname") == "/models/octant/"
            tab.until("document.querySelectorAll('#plots .line[d]').length === 4")
            tab.open(root + "/docs")
            tab.until("document.querySelectorAll('details').length > 10")
        finally:
            process.terminate()
            process.wait(30)


def a_foreign_page_reaches_nothing(tab: Browser, server: Server) -> None:
    class Foreign(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>foreign</title>")

        def log_message(self, *_: object) -> None:
            pass

    foreign = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=foreign.serve_forever, daemon=True).start()
    before = server.metric("vllm:generation_tokens_total")
    tab.open(f"http://127.0.0.1:{foreign.server_port}/")
    tab.until("document.title === 'foreign'")
    ask = """Promise.all(['cors', 'no-cors'].flatMap((mode) => [['/v1/models'], ['/v1/completions', {
        method: 'POST', headers: {'content-type': 'text/plain'}, body: '{"prompt": "a", "max_tokens": 3}',
      }]].map(([path, options]) => fetch('ROOT' + path, {mode, ...options}).then(
        (response) => response.type === 'opaque' ? 'opaque' : 'read', () => 'refused'))))"""
    assert tab.value(ask.replace("ROOT", server.root)) == ["refused", "refused", "opaque", "opaque"]
    framed = """new Promise((done) => {
        const frame = document.createElement('iframe');
        frame.onload = done;
        frame.src = 'ROOT/';
        document.body.append(frame);
      })"""
    tab.value(framed.replace("ROOT", server.root))
    assert any("frame-ancestors" in text for text in tab.complaints()), tab.complaints()
    assert server.metric("vllm:generation_tokens_total") == before, "a foreign page made the model work"
    foreign.shutdown()


def regenerate(tab: Browser) -> None:
    tab.value("document.getElementById('prompt').focus()")
    tab.tab_to("Regenerate")
    tab.press("Enter")


def intercepted(tab: Browser, more: dict, act) -> dict:
    """Adds fields to the next chat request of the page, and returns the page's own body."""
    catch = """(() => {
      const real = window.fetch;
      window.sent = '';
      window.fetch = (path, options) => {
        if (path !== 'v1/chat/completions') return real(path, options);
        window.fetch = real;
        window.sent = options.body;
        return real(path, {...options, body: JSON.stringify({...JSON.parse(options.body), ...MORE})});
      };
    })()"""
    tab.value(catch.replace("MORE", json.dumps(more)))
    act()
    return json.loads(tab.until("window.sent"))


def main(binary: str, model: str) -> None:
    server = Server(binary, model, "--api-key", KEY)
    tab = Browser()
    tab.size(1280, 800)
    try:
        for function in TESTS:
            function(tab, server)
            print(f"ok  {function.__name__}", flush=True)
        server.stop()
        a_model_without_a_template_continues_text(tab, binary, model)
        print("ok  a_model_without_a_template_continues_text, a_foreign_page_reaches_nothing")
    except AssertionError:
        tab.screenshot(SCREENSHOTS / "failed.png")
        raise
    finally:
        tab.close()
        server.process.kill()


if __name__ == "__main__":
    if os.environ.get("OCTANT_SKIP_BROWSER") == "1":
        sys.exit(0)
    if browser.program() is None:
        needed = os.environ.get("OCTANT_REQUIRE_PROGRAMS") == "1"
        print("chromium is not installed; OCTANT_SKIP_BROWSER=1 leaves this test out", file=sys.stderr)
        sys.exit(1 if needed else 0)
    SCREENSHOTS = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp(prefix="octant-page-"))
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    main(sys.argv[1], sys.argv[2])
    print(f"screenshots: {SCREENSHOTS}")
