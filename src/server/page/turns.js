// The turns of the conversation as they are shown. All text is set as text.

import { TokenSplitter } from "./tokens.js";

/** Makes an element with a class and text. */
export function element(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

/** Makes a button that calls `act`. */
export function button(text, act, className = "quiet") {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

/** A turn: who speaks, the text, and a line of figures and buttons below it. */
class Turn {
  constructor(role, who) {
    this.role = role;
    this.text = "";
    this.element = element("article", `turn ${role}`);
    this.element.setAttribute("aria-label", who);
    this.body = element("div", "text");
    this.foot = element("div", "foot");
    this.element.append(element("p", "who", who), this.body, this.foot);
  }

  /** Replaces the buttons. */
  offer(...buttons) {
    this.foot.querySelectorAll("button").forEach((old) => old.remove());
    this.foot.append(...buttons);
  }
}

/** A message of the user. */
export class UserTurn extends Turn {
  constructor(text) {
    super("user", "You");
    this.text = text;
    this.body.textContent = text;
  }
}

/** An answer, which grows while it is streamed. */
export class AnswerTurn extends Turn {
  #popover;
  #figures = element("span", "figures");
  #splitter = new TokenSplitter();
  /** Tokens of the streams before the current one. */
  #earlier = 0;
  #stream = null;

  constructor(who, popover) {
    super("assistant", who);
    this.#popover = popover;
    this.finish = null;
  }

  /** Begins a stream, which continues the text that is there. */
  begin() {
    this.finish = null;
    this.#stream = { start: performance.now(), first: null, last: null, seen: 0, usage: null };
    this.body.classList.add("streaming");
    this.body.classList.toggle("waiting", this.text === "");
    this.foot.prepend(this.#figures);
  }

  /** Takes a chunk's text, tokens, usage and reason to finish. */
  add({ text = "", tokens = [], usage = null, finish = null }) {
    const stream = this.#stream;
    if (text || tokens.length > 0) {
      stream.last = performance.now();
      stream.first ??= stream.last;
      // Without log-probabilities, a chunk is about one token.
      stream.seen += Math.max(1, tokens.length);
    }
    stream.usage = usage ?? stream.usage;
    this.finish = finish ?? this.finish;
    this.text += text;
    if (text) this.body.classList.remove("waiting");
    if (tokens.length > 0 || stream.split) {
      stream.split = true;
      this.#show(this.#splitter.take(text, tokens));
    } else if (text) {
      this.#show([{ text, tokens }]);
    }
    this.#describe();
  }

  /** Ends the stream. `how` is said instead of the reason to finish, if the server gave none. */
  end(how = "") {
    this.#show(this.#splitter.finish());
    this.body.classList.remove("streaming", "waiting");
    this.#describe(how);
    this.#earlier += this.#tokens();
    const first = this.body.querySelector(".t");
    if (first && !this.body.querySelector(".t[tabindex='0']")) first.tabIndex = 0;
  }

  #tokens() {
    return this.#stream.usage?.completion_tokens ?? this.#stream.seen;
  }

  #show(pieces) {
    for (const { text, tokens } of pieces) {
      const last = this.body.lastChild;
      if (tokens.length > 0) {
        this.body.append(this.#popover.span(text, tokens));
      } else if (last?.nodeType === Node.TEXT_NODE) {
        last.appendData(text);
      } else {
        this.body.append(text);
      }
    }
  }

  /** Token counts, rate, time to the first token, and why the answer ended. */
  #describe(how = "") {
    const { start, first, last, usage } = this.#stream;
    const tokens = this.#tokens();
    const parts = [];
    if (usage) {
      const cached = usage.prompt_tokens_details?.cached_tokens;
      parts.push(`${usage.prompt_tokens} in${cached ? ` (${cached} cached)` : ""}`);
    }
    const count = this.#earlier + tokens;
    if (count > 0) parts.push(`${usage || this.#stream.split ? "" : "~"}${count} out`);
    if (tokens > 1 && last > first) {
      const rate = (1000 * (tokens - 1)) / (last - first);
      parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
    }
    if (first) parts.push(`first after ${((first - start) / 1000).toFixed(2)} s`);
    const reasons = { length: "token limit reached", stop: "" };
    const reason = this.finish === null ? how : (reasons[this.finish] ?? this.finish);
    if (reason) parts.push(reason);
    this.#figures.textContent = parts.join(" · ");
  }
}

/** A failure below the turn that it belongs to. Counts down the seconds that the server asks to wait. */
export function faultBox(fault) {
  const box = element("div", "fault");
  box.setAttribute("role", "alert");
  box.append(element("p", "", fault.message));
  const detail = element("p", "detail");
  const parts = [];
  if (fault.status) parts.push(`HTTP ${fault.status}`);
  if (fault.code) parts.push(fault.code);
  if (fault.param) parts.push(`field ${fault.param}`);
  const end = performance.now() + 1000 * (fault.retryAfter ?? 0);
  const count = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    const wait = fault.retryAfter ? [left > 0 ? `try again in ${left} s` : "try again now"] : [];
    detail.textContent = [...parts, ...wait].join(" · ");
    if (left > 0 && fault.retryAfter) setTimeout(count, 1000);
  };
  count();
  if (detail.textContent) box.append(detail);
  return box;
}
