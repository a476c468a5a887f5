"use strict";
// Draws the OpenAPI document that stands in this page. Text goes in as text only, never as HTML.

const api = JSON.parse(document.getElementById("document").textContent);

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function follow(value) {
  while (value.$ref && Object.keys(value).length === 1) {
    value = value.$ref.slice(2).split("/").reduce((at, key) => at[key], api);
  }
  return value;
}

// `code` between backticks; everything else as it is.
function prose(text) {
  const parts = (text || "").split("`");
  return parts.map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

function paragraphs(text) {
  return (text || "").split(/\n\n+/).filter(Boolean).map((part) => {
    const isLiteral = part.split("\n").every((line) => line.startsWith("    "));
    return isLiteral ? make("pre", {}, part.replace(/^ {4}/gm, "")) : make("p", {}, ...prose(part));
  });
}

function nameOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(nameOf).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return `array of ${nameOf(schema.items || {})}`;
  return schema.type || "any JSON value";
}

const LIMITS = {
  minimum: "from", maximum: "to", minLength: "at least", maxLength: "at most", pattern: "like", default: "default",
};

function limitsOf(schema) {
  const inner = (schema.anyOf || []).find((kind) => kind.type !== "null") || {};
  const all = { ...inner, ...schema };
  return Object.entries(LIMITS)
    .filter(([key]) => all[key] !== undefined && all[key] !== null)
    .map(([key, word]) => `${word} ${typeof all[key] === "string" ? all[key] : JSON.stringify(all[key])}`)
    .join(", ");
}

// The object that a schema holds, by itself, in a list, or beside null.
function objectIn(schema) {
  const whole = schema.$ref ? follow({ $ref: schema.$ref }) : schema;
  if (whole.properties) return whole;
  if (whole.items) return objectIn(whole.items);
  for (const kind of whole.anyOf || []) {
    const found = objectIn(kind);
    if (found) return found;
  }
  return null;
}

function field(name, schema, isRequired, depth) {
  const inner = depth < 4 ? objectIn(schema) : null;
  const limits = limitsOf(schema);
  const type = make("span", { class: "quiet" }, nameOf(schema) + (limits ? `; ${limits}` : ""));
  const shown = inner
    ? make("details", { class: "type" }, make("summary", {}, nameOf(schema)), fields(inner, depth + 1))
    : type;
  const about = schema.description || (inner && inner.description) || "";
  return make("tr", {},
    make("td", {}, make("code", {}, name), isRequired ? make("span", { class: "bad", title: "required" }, " *") : null),
    make("td", {}, make("p", {}, ...prose(about)), shown));
}

function fields(schema, depth = 0) {
  const required = new Set(schema.required || []);
  const rows = Object.entries(schema.properties).map(([name, value]) => field(name, value, required.has(name), depth));
  return make("table", {}, make("tbody", {}, ...rows));
}

function body(content) {
  return Object.entries(content).flatMap(([type, { schema }]) => {
    const inner = objectIn(schema);
    const head = make("p", { class: "quiet" }, `${type}: ${nameOf(schema)}`);
    return inner ? [head, fields(inner)] : [head];
  });
}

function example(method, path, operation) {
  const lines = [`curl ${method === "get" ? "" : "-X POST "}-H "Authorization: Bearer $SMITHERS_API_KEY" \\`];
  if (operation.requestBody) {
    const schema = objectIn(operation.requestBody.content["application/json"].schema);
    const sample = Object.fromEntries((schema && schema.required ? schema.required : []).map((name) => [name, "…"]));
    lines.push(`  -d '${JSON.stringify(sample)}' \\`);
  }
  const server = location.protocol.startsWith("http") ? location.origin : "http://127.0.0.1:7331";
  return make("pre", {}, [...lines, `  ${server}${path}`].join("\n"));
}

function parameters(operation) {
  const rows = operation.parameters.map(follow).map((parameter) => field(
    parameter.name,
    { ...parameter.schema, description: [parameter.in, parameter.description].filter(Boolean).join("; ") },
    parameter.required, 4));
  return [make("h3", {}, "Parameters"), make("table", {}, make("tbody", {}, ...rows))];
}

function refusals(operation) {
  const rows = Object.entries(operation.responses).filter(([status]) => status >= "300").map(([status, response]) =>
    make("tr", {}, make("td", {}, make("code", {}, status)), make("td", {}, follow(response).description)));
  return [make("h3", {}, "Errors"), make("table", {}, make("tbody", {}, ...rows))];
}

function successes(operation) {
  return Object.entries(operation.responses).filter(([status]) => status < "300").flatMap(([status, response]) => {
    const headers = Object.keys(response.headers || {}).filter((name) => name !== "X-Request-Id");
    const more = headers.length ? `, with ${headers.join(", ")}` : "";
    const about = response.content ? "" : ` ${response.description}`;
    return [make("h3", {}, `Answer ${status}${more}`), make("p", {}, about), ...body(response.content || {})];
  });
}

function route(method, path, operation) {
  const scopes = operation.security.flatMap((way) => way.bearer || []);
  const access = scopes.length ? `Scope: ${scopes.join(", ")}` : "Needs no credential";
  const parts = make("div", {},
    ...paragraphs(operation.description),
    make("p", { class: "quiet" }, access),
    example(method, path, operation),
    ...parameters(operation));
  if (operation.requestBody) parts.append(make("h3", {}, "Body"), ...body(operation.requestBody.content));
  parts.append(...successes(operation), ...refusals(operation));
  const summary = make("summary", {},
    make("span", { class: `method ${method}` }, method.toUpperCase()),
    make("span", { class: "path" }, path),
    make("span", { class: "quiet" }, ...prose(operation.summary)));
  return make("details", { class: "route", id: operation.operationId }, summary, parts);
}

function groups() {
  const found = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags[0];
      if (!found.has(tag)) found.set(tag, []);
      found.get(tag).push({ method, path, operation });
    }
  }
  return found;
}

function draw() {
  const main = document.getElementById("main");
  const contents = document.getElementById("contents");
  document.title = `${api.info.title} HTTP API`;
  main.append(
    make("h1", {}, `${api.info.title} HTTP API`),
    make("p", { class: "quiet" }, `version ${api.info.version}, `, make("a", { href: "/openapi.json" }, "openapi.json")),
    ...paragraphs(api.info.description));
  for (const [tag, routes] of groups()) {
    main.append(make("h2", {}, tag));
    const links = make("div", {}, make("h3", {}, tag));
    for (const { method, path, operation } of routes) {
      main.append(route(method, path, operation));
      links.append(make("a", { href: `#${operation.operationId}` },
        make("span", { class: `method ${method}` }, method.toUpperCase()), make("span", { class: "path" }, path)));
    }
    contents.append(links);
  }
  const event = api.components.schemas.Event;
  main.append(make("h2", {}, "Event"), ...paragraphs(event.description), fields(event));
}

function openNamed() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named && named.tagName === "DETAILS") {
    named.open = true;
    named.scrollIntoView();
  }
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const link of document.querySelectorAll("#contents a")) {
    const about = `${link.textContent} ${document.querySelector(link.hash).firstChild.textContent}`.toLowerCase();
    link.hidden = !words.every((word) => about.includes(word));
  }
}

draw();
addEventListener("hashchange", openNamed);
document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value));
openNamed();
