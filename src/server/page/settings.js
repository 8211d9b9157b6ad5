// The panel: system prompt, sampling, colours, API key. Its values stay in this tab until it is closed.

const VALUES = "octant.settings";
const KEY = "octant.key";
/** Width from which the panel stands beside the conversation. */
const wide = window.matchMedia("(min-width: 54.01rem)");

/** Reads from the tab's storage, which a browser may forbid. */
function stored(name) {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
}

function store(name, value) {
  try {
    sessionStorage.setItem(name, value);
  } catch {
    // The values then last as long as the page.
  }
}

export class Settings {
  #by = (id) => document.getElementById(id);
  #inputs = [...document.querySelectorAll("#settings .grid input")];
  #panel = this.#by("panel");
  #toggle = this.#by("toggle");

  /** `onKey` is called when the API key has changed. */
  constructor(onKey) {
    const key = this.#by("key");
    key.value = stored(KEY);
    key.addEventListener("change", () => {
      store(KEY, this.key);
      onKey();
    });
    this.#restore();
    const form = this.#by("settings");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("keydown", (event) => {
      // Enter in a field applies it, as leaving the field does.
      const { key: pressed, target } = event;
      if (pressed === "Enter" && target.matches("input")) target.dispatchEvent(new Event("change"));
    });
    form.addEventListener("input", (event) => {
      event.target.removeAttribute("aria-invalid");
      this.#colour();
      this.#save();
    });
    this.#by("reset").addEventListener("click", () => {
      for (const input of this.#inputs) {
        input.value = "";
        input.removeAttribute("aria-invalid");
      }
      this.#save();
    });
    this.#toggle.addEventListener("click", () => this.open(this.#panel.hidden));
    this.#by("close").addEventListener("click", () => this.open(false));
    wide.addEventListener("change", () => this.open(wide.matches && !this.#panel.hidden));
    this.open(window.matchMedia("(min-width: 70rem)").matches, false);
    this.#colour();
  }

  get key() {
    return this.#by("key").value.trim();
  }

  get system() {
    return this.#by("system").value;
  }

  get colour() {
    return this.#by("colour").checked;
  }

  /** The sampling parameters that are filled in, as pairs of name and text. */
  get numbers() {
    return this.#inputs.filter((input) => input.value.trim()).map((input) => [input.name, input.value]);
  }

  /** Whether the panel covers the conversation. */
  get covers() {
    return !this.#panel.hidden && !wide.matches;
  }

  /** Opens or closes the panel. Where it covers the page, the rest cannot be reached meanwhile. */
  open(on, focus = true) {
    const covered = this.covers;
    this.#panel.hidden = !on;
    this.#toggle.setAttribute("aria-expanded", String(on));
    for (const other of document.querySelectorAll("main, .bar")) other.inert = this.covers;
    if (focus && this.covers) this.#by("close").focus();
    if (focus && covered && !on) this.#toggle.focus();
  }

  /** Marks the field that the server refused. */
  mark(param) {
    this.#inputs.find((input) => input.name === param)?.setAttribute("aria-invalid", "true");
  }

  /** Asks for an API key. */
  askForKey() {
    this.open(true, false);
    this.#by("key").focus();
  }

  #colour() {
    this.#by("transcript").classList.toggle("colour", this.colour);
    this.#by("legend").hidden = !this.colour;
    this.#by("legend").classList.toggle("colour", this.colour);
  }

  #save() {
    const numbers = Object.fromEntries(this.#inputs.map((input) => [input.name, input.value]));
    store(VALUES, JSON.stringify({ system: this.system, colour: this.colour, numbers }));
  }

  #restore() {
    let values = {};
    try {
      values = JSON.parse(stored(VALUES) || "{}");
    } catch {
      return;
    }
    this.#by("system").value = values.system ?? "";
    this.#by("colour").checked = values.colour === true;
    for (const input of this.#inputs) input.value = values.numbers?.[input.name] ?? "";
  }
}
