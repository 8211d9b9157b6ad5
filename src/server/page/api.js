// Requests to the server: JSON, and answers streamed as server-sent events. Paths are relative to the page,
// which a proxy may serve below a path of its own.

/** A failure to show: the server's own error, or a broken connection. */
export class Fault extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

/** Sends a request. `key` may be empty. Throws a Fault for every status but a success. */
async function call(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, {
      ...options, headers, cache: "no-store", credentials: "omit", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // A key with characters that no header may have never leaves the page.
    throw new Fault(key && !/^[\x21-\x7e]+$/.test(key)
      ? "The API key has characters that a header cannot carry."
      : "The server cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The fault of a response that is no success. */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? {};
  const seconds = Number(response.headers.get("retry-after"));
  return new Fault(error.message ?? `The server answered with status ${response.status}.`, {
    status: response.status,
    param: error.param ?? null,
    code: error.code ?? null,
    retryAfter: seconds > 0 ? seconds : null,
  });
}

/** The models that the server lists. */
export async function models(key) {
  const list = await (await call("v1/models", key)).json();
  return list.data;
}

/** The text of the server's metrics. */
export async function metrics(key) {
  return (await call("metrics", key)).text();
}

/** A number as JSON, digit by digit as typed: a seed may have more digits than a JavaScript number. Text that
 * is no number goes to the server as text, whose error names the field. */
function literal(typed) {
  const text = typed.trim().replace(",", ".");
  if (/^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/.test(text)) return text;
  const number = Number(text);
  return Number.isFinite(number) ? String(number) : JSON.stringify(typed);
}

/** The JSON of a body and of numbers as they were typed, given as pairs of name and text. */
function encode(body, numbers) {
  const fields = numbers.map(([name, typed]) => `,${JSON.stringify(name)}:${literal(typed)}`);
  return JSON.stringify(body).slice(0, -1) + fields.join("") + "}";
}

/** Posts a request for a stream, and yields its chunks. Throws a Fault if the stream ends before `[DONE]`. */
export async function* chunks(path, { body, numbers, key, signal }) {
  const response = await call(path, key, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: encode({ ...body, stream: true, stream_options: { include_usage: true } }, numbers),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Fault(chunk.error.message, chunk.error);
    yield chunk;
  }
  throw new Fault("The connection ended before the answer did.");
}

/** The data of each event of a stream of bytes. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length > 0) {
          const event = data.join("\n");
          data = [];
          yield event;
        }
      }
    }
  } finally {
    // Closes the connection if the caller has seen enough.
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("The connection ended before the answer did.");
  }
}
