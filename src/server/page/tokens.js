// Tokens with their log-probabilities: which part of the text each one is, its colour, and the popover with
// the alternatives.

/** Most tokens that form one character. */
const MOST_TOKENS = 8;

const encoder = new TextEncoder();

/** Probability from a log-probability, as text. */
function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value < 0.01) return "< 0.01 %";
  return `${value >= 10 ? value.toFixed(1) : value.toPrecision(2)} %`;
}

/** The class of a token's colour. */
function shade(logprob) {
  const limits = [0.9, 0.6, 0.3, 0.1];
  const place = limits.findIndex((limit) => Math.exp(logprob) >= limit);
  return `p${place < 0 ? 5 : place + 1}`;
}

/** Text in which spaces and line ends can be seen. */
function visible(text) {
  const marks = { " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍" };
  return text.replace(/^ | $|[\n\t\r]/g, (c) => marks[c]) || "(no text)";
}

/** The tokens of a chunk, from either kind of log-probabilities. */
export function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content;
  const columns = logprobs.tokens ?? [];
  return columns.map((token, i) => ({
    token,
    logprob: logprobs.token_logprobs[i],
    top_logprobs: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([name, logprob]) => ({
      token: name, logprob,
    })),
  }));
}

/** Divides streamed text among its tokens. A token may arrive before its text, or end within a character. */
export class TokenSplitter {
  #text = "";
  #tokens = [];

  /** Takes the next text and tokens. Returns pieces: a text and its tokens, which are none at the end of the
   * answer for text that no token has. */
  take(text, tokens) {
    this.#text += text;
    this.#tokens.push(...tokens);
    const pieces = [];
    for (let piece = this.#next(); piece; piece = this.#next()) pieces.push(piece);
    return pieces;
  }

  /** The rest, at the end of the answer. */
  finish() {
    const rest = this.#text;
    this.#text = "";
    this.#tokens = [];
    return rest ? [{ text: rest, tokens: [] }] : [];
  }

  #next() {
    if (!this.#text) return null;
    const bytes = [];
    for (let count = 1; count <= Math.min(MOST_TOKENS, this.#tokens.length); count += 1) {
      const last = this.#tokens[count - 1];
      bytes.push(...(last.bytes ?? encoder.encode(last.token)));
      const text = this.#match(Uint8Array.from(bytes));
      if (text !== null) {
        this.#text = this.#text.slice(text.length);
        return { text, tokens: this.#tokens.splice(0, count) };
      }
    }
    if (this.#tokens.length < MOST_TOKENS) return null;
    // No number of tokens has this text: the text is shown without them.
    this.#tokens = [];
    return this.finish()[0];
  }

  /** The beginning of the text that these bytes are. The first word of an answer may lose its space. */
  #match(bytes) {
    let text;
    try {
      text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return null;
    }
    const forms = [text, text.replace(/^[ \u2581]/, "")];
    return forms.find((form) => form && this.#text.startsWith(form)) ?? null;
  }
}

/** Shows the alternatives to the token that is pointed at or has the focus. */
export class Popover {
  #box;
  #tokens = new WeakMap();
  #shown = null;

  constructor(box, transcript) {
    this.#box = box;
    const token = (event) => event.target.closest?.(".t");
    const colours = () => transcript.classList.contains("colour");
    transcript.addEventListener("pointerover", (event) => colours() && this.#show(token(event)));
    transcript.addEventListener("pointerleave", () => this.#show(document.activeElement?.closest(".t")));
    transcript.addEventListener("focusin", (event) => colours() && this.#show(token(event)));
    transcript.addEventListener("focusout", () => this.hide());
    transcript.addEventListener("keydown", (event) => token(event) && move(event));
    // The focus on a token may scroll it into view.
    const scrolled = () => (this.#shown === document.activeElement ? this.#place() : this.hide());
    document.addEventListener("scroll", () => this.#shown && scrolled(), true);
  }

  /** A span for a piece of text with its tokens. */
  span(text, tokens) {
    const span = document.createElement("span");
    const least = tokens.reduce((a, b) => (b.logprob < a.logprob ? b : a));
    span.className = `t ${shade(least.logprob)}`;
    span.textContent = text;
    span.tabIndex = -1;
    this.#tokens.set(span, tokens);
    return span;
  }

  /** Hides the popover. Returns whether it was shown. */
  hide() {
    const shown = this.#shown;
    this.#shown?.removeAttribute("aria-describedby");
    this.#shown = null;
    this.#box.hidden = true;
    return shown !== null;
  }

  #show(span) {
    const tokens = this.#tokens.get(span);
    if (!tokens) {
      this.hide();
      return;
    }
    if (span === this.#shown) return;
    this.hide();
    this.#shown = span;
    span.setAttribute("aria-describedby", this.#box.id);
    this.#box.replaceChildren(...tokens.map(table));
    this.#box.hidden = false;
    this.#place();
  }

  /** Puts the box above the token, or below it where there is no room. */
  #place() {
    const span = this.#shown;
    const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const own = this.#box.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, window.innerWidth - own.width - 8));
    const above = at.top - own.height - 6;
    this.#box.style.left = `${left}px`;
    this.#box.style.top = `${above >= 8 ? above : at.bottom + 6}px`;
  }
}

/** The table of a token and its alternatives, the most probable first. */
function table(token) {
  const rows = [...(token.top_logprobs ?? [])];
  if (!rows.some((row) => row.token === token.token)) rows.push(token);
  const element = document.createElement("table");
  const caption = element.createCaption();
  caption.textContent = `log-probability ${token.logprob.toFixed(3)}`;
  for (const row of rows) {
    const line = element.insertRow();
    line.className = row.token === token.token ? "chosen" : "";
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = visible(row.token);
    line.append(name);
    line.insertCell().textContent = percent(row.logprob);
  }
  return element;
}

/** Moves the focus between the tokens of an answer. */
function move(event) {
  const spans = [...event.target.parentElement.querySelectorAll(".t")];
  const at = spans.indexOf(event.target);
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 };
  const next = spans[steps[event.key]];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}
