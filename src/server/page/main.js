// The page: a conversation with the model that this server serves.

import { Fault, chunks, models } from "./api.js";
import { watch } from "./load.js";
import { Settings } from "./settings.js";
import { Popover, tokensOf } from "./tokens.js";
import { AnswerTurn, UserTurn, button, faultBox } from "./turns.js";

/** Alternatives shown for each token. */
const ALTERNATIVES = 3;
/** Distance in pixels from the end within which the view follows the answer. */
const NEAR_END = 60;

const by = (id) => document.getElementById(id);
const [transcript, prompt, model, scroll] = ["transcript", "prompt", "model", "scroll"].map(by);
const popover = new Popover(by("popover"), transcript);

/** The turns, oldest first. An unanswered message of the user may stand at the end. */
let turns = [];
/** Ends the answer that is being streamed. */
let running = null;
/** Whether the model has no chat template, so that the text itself is continued. */
let plain = false;

const settings = new Settings(() => loadModels());

function say(text) {
  by("status").textContent = text;
}

/** Shows which buttons can be used now. */
function refresh() {
  by("empty").hidden = turns.length > 0;
  by("clear").disabled = turns.length === 0;
  const stopHadFocus = document.activeElement === by("stop");
  by("stop").hidden = !running;
  by("send").hidden = Boolean(running);
  by("send").disabled = prompt.value.trim() === "";
  if (stopHadFocus && !running) prompt.focus();
  transcript.setAttribute("aria-busy", String(Boolean(running)));
  turns.forEach((turn, i) => turn.offer(...(running ? [] : offers(turn, i === turns.length - 1))));
}

/** The buttons below a turn. */
function offers(turn, isLast) {
  if (turn.role === "user") return [button("Edit", () => edit(turn))];
  const made = [];
  if (isLast && turn.finish !== "stop" && turn.text) {
    made.push(button("Continue", () => ask(turn), "quiet main"));
  }
  if (isLast) made.push(button("Regenerate", regenerate));
  if (turn.text) made.push(button("Copy", (event) => copy(event.target, turn.text)));
  return made;
}

async function copy(from, text) {
  try {
    await navigator.clipboard.writeText(text);
    from.textContent = "Copied";
  } catch {
    from.textContent = "Not allowed";
  }
  setTimeout(() => { from.textContent = "Copy"; }, 1500);
}

function push(turn) {
  turns.push(turn);
  transcript.append(turn.element);
  return turn;
}

/** Removes the turns from this place on. */
function cut(from) {
  popover.hide();
  for (const turn of turns.splice(from)) turn.element.remove();
}

function clearFaults() {
  transcript.querySelectorAll(".fault").forEach((box) => box.remove());
}

/** Runs a change of the view, and keeps its end in sight if it was. */
function following(change) {
  const near = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR_END;
  change();
  if (near) scroll.scrollTop = scroll.scrollHeight;
}

/** The request for an answer. `answer` is continued if it has text. */
function request(answer) {
  const continues = answer.text !== "";
  const told = turns.filter((turn) => turn !== answer || continues);
  const body = model.value ? { model: model.value } : {};
  const { colour, system } = settings;
  if (plain) {
    body.prompt = system + told.map((turn) => turn.text).join("");
    if (colour) body.logprobs = ALTERNATIVES;
    return { path: "v1/completions", body };
  }
  const first = system.trim() ? [{ role: "system", content: system }] : [];
  body.messages = first.concat(told.map(({ role, text }) => ({ role, content: text })));
  if (continues) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  if (colour) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  return { path: "v1/chat/completions", body };
}

/** Streams an answer into a turn. */
async function ask(answer) {
  clearFaults();
  running = new AbortController();
  answer.begin();
  following(refresh);
  say("Answering.");
  try {
    await stream(answer);
    answer.end();
    say("Answer complete.");
  } catch (error) {
    const stopped = error.name === "AbortError";
    answer.end(stopped ? "stopped" : "cut off");
    say(stopped ? "Answer stopped." : "");
    if (!stopped) failed(answer, error instanceof Fault ? error : new Fault(String(error)));
  }
  running = null;
  following(refresh);
}

async function stream(answer) {
  const { path, body } = request(answer);
  const options = { body, numbers: settings.numbers, key: settings.key, signal: running.signal };
  try {
    for await (const chunk of chunks(path, options)) {
      const choice = chunk.choices?.[0];
      following(() => answer.add({
        text: choice?.delta?.content ?? choice?.text ?? "",
        tokens: tokensOf(choice?.logprobs),
        usage: chunk.usage,
        finish: choice?.finish_reason,
      }));
    }
  } catch (error) {
    if (plain || !(error instanceof Fault) || !/no chat template/.test(error.message)) throw error;
    plain = true;
    notice("This model has no chat template, so it continues your text as it stands.");
    await stream(answer);
  }
}

/** Shows a failure. An answer without text is removed, and its message can be sent again or edited. */
function failed(answer, fault) {
  settings.mark(fault.param);
  const box = faultBox(fault);
  if (answer.text) {
    answer.element.append(box);
    return;
  }
  cut(turns.indexOf(answer));
  const last = turns[turns.length - 1];
  box.append(button("Try again", () => ask(push(new AnswerTurn(model.value, popover)))));
  last.element.append(box);
  if (fault.status === 401) settings.askForKey();
}

function send() {
  const text = prompt.value;
  if (running || text.trim() === "") return;
  // A message without an answer is replaced: templates expect turns to alternate.
  if (turns[turns.length - 1]?.role === "user") cut(turns.length - 1);
  prompt.value = "";
  push(new UserTurn(text));
  const answer = push(new AnswerTurn(model.value || "Model", popover));
  scroll.scrollTop = scroll.scrollHeight;
  ask(answer);
}

function regenerate() {
  const at = turns.length - 1;
  const told = turns[at];
  if (running || told?.role !== "assistant") return;
  cut(at);
  prompt.focus();
  ask(push(new AnswerTurn(model.value || "Model", popover)));
}

/** Takes a message back into the field, and removes what follows it. */
function edit(turn) {
  cut(turns.indexOf(turn));
  prompt.value = turn.text;
  prompt.focus();
  refresh();
}

function clear() {
  running?.abort();
  cut(0);
  clearFaults();
  refresh();
  say("New chat.");
  prompt.focus();
}

function notice(text) {
  by("notice").textContent = text;
  by("notice").hidden = text === "";
}

/** Fills the list of models, and says what is wrong if there is none. */
async function loadModels() {
  try {
    const list = await models(settings.key);
    const chosen = model.value;
    model.replaceChildren(...list.map(({ id }) => new Option(id, id, id === list[0].id, id === chosen)));
    model.disabled = list.length < 2;
    model.title = `Context: ${list[0].max_model_len.toLocaleString()} tokens`;
    const scores = list[0].task === "reward";
    notice(scores ? "This model scores answers and does not chat; /docs has its routes." : "");
  } catch (fault) {
    model.replaceChildren(new Option("no model", ""));
    model.disabled = true;
    const isKey = fault.status === 401;
    const needed = isKey && !settings.key;
    notice(needed ? "This server needs an API key: enter it in the settings." : fault.message);
    if (isKey) settings.askForKey();
  }
}

by("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
by("stop").addEventListener("click", () => running?.abort());
by("clear").addEventListener("click", clear);
prompt.addEventListener("input", refresh);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || popover.hide()) return;
  if (running) running.abort();
  else if (settings.covers) settings.open(false);
});

watch({
  section: by("load"),
  list: by("plots"),
  key: () => settings.key,
  show: (now) => {
    by("pulse").hidden = !now;
    if (now) by("pulse").textContent = `${now.running} running · ${now.waiting} waiting`;
  },
});
loadModels();
refresh();
