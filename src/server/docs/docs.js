// Shows the OpenAPI document of this server. Every text is set as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);

/** Makes an element with a class, and text or children. */
function make(tag, kind, ...children) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.append(...children.filter((child) => child !== undefined));
  return element;
}

/** The schema behind a reference. */
function resolve(api, schema) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref.replace("#/", "").split("/").reduce((at, key) => at?.[key], api) ?? {};
}

/** The types of a schema without null, since a field that is null counts as absent. */
function typesOf(api, schema) {
  const found = resolve(api, schema);
  const byType = Array.isArray(found.type) ? found.type.map((type) => ({ ...found, type })) : [found];
  const options = found.anyOf ?? byType;
  return options.map((option) => resolve(api, option)).filter((option) => option.type !== "null");
}

/** Type and range of a schema in words. */
function typeText(api, schema) {
  const one = (option) => {
    if (option.enum) return option.enum.map((word) => JSON.stringify(word)).join(" or ");
    if (option.anyOf) return typeText(api, option);
    const { type = "any value", minimum, exclusiveMinimum, maximum, maxLength, maxItems } = option;
    const range = [];
    if (minimum !== undefined) range.push(`from ${minimum}`);
    if (exclusiveMinimum !== undefined) range.push(`above ${exclusiveMinimum}`);
    if (maximum !== undefined) range.push(`to ${maximum}`);
    if (maxLength !== undefined) range.push(`of at most ${maxLength} characters`);
    const most = maxItems === undefined ? "" : `at most ${maxItems} `;
    if (type === "array") return `array of ${most}(${typeText(api, option.items ?? {})})`;
    return [type, ...range].join(" ");
  };
  return [...new Set(typesOf(api, schema).map(one))].join(", or ");
}

/** Rows of a table for the fields of an object, and of the objects within it. */
function fieldRows(api, schema, path, depth = 0) {
  const object = resolve(api, schema);
  return Object.entries(object.properties ?? {}).flatMap(([name, field]) => {
    const full = path + name;
    const notes = [];
    if (object.required?.includes(name)) notes.push("Required. ");
    if (field["x-octant-without-effect"]) notes.push("Has no effect. ");
    const value = field.default === undefined ? "" : JSON.stringify(field.default);
    const description = make("td", "", make("span", "soft", ...notes), field.description ?? "");
    const row = make("tr", "", make("td", "", make("code", "", full)), make("td", "", typeText(api, field)),
      make("td", "", make("code", "", value)), description);
    if (depth >= 3) return [row];
    const inner = typesOf(api, field).flatMap((option) => {
      const items = option.type === "array" ? typesOf(api, option.items) : [option];
      const suffix = option.type === "array" ? "[]." : ".";
      return items.flatMap((item) => (item.properties ? fieldRows(api, item, full + suffix, depth + 1) : []));
    });
    return [row, ...inner];
  });
}

function fieldTable(api, schema) {
  const titles = ["Field", "Type and range", "Default", ""];
  const head = make("tr", "", ...titles.map((text) => make("th", "", text)));
  const rows = fieldRows(api, schema, "");
  if (rows.length === 0) return undefined;
  const table = make("table", "", make("thead", "", head), make("tbody", "", ...rows));
  return make("div", "scroll", table);
}

/** A command line that sends the example. */
function curl(method, path, type, example) {
  const base = location.href.replace(/\/docs.*$/, "/");
  const url = new URL(`.${path}`, base).href.replace("%7B", "{").replace("%7D", "}");
  if (!example) return method === "get" ? `curl ${url}` : `curl -X ${method.toUpperCase()} ${url}`;
  if (type === "multipart/form-data") {
    const fields = Object.entries(example).map(([name, value]) => ` -F ${name}=${value}`);
    return `curl ${url}${fields.join("")}`;
  }
  const body = JSON.stringify(example).replaceAll("'", "'\\''");
  return `curl ${url} -H 'Content-Type: application/json' -d '${body}'`;
}

function answers(api, operation) {
  const rows = Object.entries(operation.responses).map(([status, response]) =>
    make("tr", "", make("td", "", make("code", "", status)), make("td", "", response.description)));
  const parts = [make("h3", "", "Statuses"), make("table", "", make("tbody", "", ...rows))];
  for (const [type, media] of Object.entries(operation.responses["200"].content ?? {})) {
    const data = type === "text/event-stream" ? typesOf(api, media.schema.properties.data) : [];
    const event = data.find((option) => option.contentSchema)?.contentSchema;
    const table = fieldTable(api, event ?? media.schema);
    parts.push(make("h3", "", `Answer: ${type}`));
    if (media.schema.description) parts.push(make("p", "soft", media.schema.description));
    if (table) parts.push(table);
  }
  return parts;
}

/** One operation, closed at first. What it shows is made when it is opened. */
function section(api, method, path, operation) {
  const summary = make("summary", "", make("span", "method", method.toUpperCase()), make("code", "", path),
    make("span", "about", operation.summary));
  const details = make("details", "", summary);
  const [type, media] = Object.entries(operation.requestBody?.content ?? {})[0] ?? [];
  const body = resolve(api, media?.schema);
  const fields = Object.keys(body.properties ?? {}).join(" ");
  details.dataset.search = `${method} ${path} ${operation.summary} ${fields}`.toLowerCase();
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    details.append(make("pre", "", curl(method, path, type, media?.example)));
    const parameters = operation.parameters ?? [];
    if (parameters.length) {
      const properties = Object.fromEntries(parameters.map((each) =>
        [each.name, { ...each.schema, description: `${each.description} (${each.in})` }]));
      details.append(make("h3", "", "Path, query and headers"), fieldTable(api, { properties }));
    }
    if (media) details.append(make("h3", "", "Body"), fieldTable(api, body) ?? "");
    const refused = body["x-octant-refused"] ?? [];
    if (refused.length) {
      details.append(make("p", "soft", "Fields that are refused by name, unless they ask for nothing: ",
        make("code", "", refused.join(", "))));
    }
    details.append(...answers(api, operation));
  });
  return details;
}

function show(api) {
  byId("version").textContent = api.info.version;
  byId("about").textContent = api.info.description;
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(section(api, method, path, operation));
    }
  }
  const group = ([tag, operations]) => make("section", "", make("h2", "", tag), ...operations);
  const sections = [...groups].map(group);
  byId("routes").replaceChildren(...sections);
  byId("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const details of document.querySelectorAll("details")) {
      details.hidden = !details.dataset.search.includes(wanted);
    }
  });
}

fetch("openapi.json")
  .then((response) => {
    if (!response.ok) throw new Error(`status ${response.status}`);
    return response.json();
  })
  .then(show)
  .catch((error) => {
    const text = `Cannot load openapi.json: ${error.message}`;
    byId("routes").replaceChildren(make("p", "error", text));
  });
