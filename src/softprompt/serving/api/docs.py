"""GET /docs: the endpoints and their fields on one page. Knows how OpenAPI's document is built.

The page is made here and reads ``/openapi.json`` itself, so it works without the internet; what it shows is
put in as text, never as markup.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

__all__ = ["router"]

router = APIRouter()

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_PAGE, headers={"content-security-policy": _POLICY})


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>softprompt: endpoints</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
  h2 { margin: 2.2rem 0 .2rem; font-size: 1.05rem; }
  code, h2 { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
  .verb { display: inline-block; min-width: 4.2rem; font-weight: 700; }
  p { margin: .2rem 0 .6rem; }
  table { border-collapse: collapse; width: 100%; font-size: .9rem; }
  td, th { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; }
  td { border-top: 1px solid #8884; }
  summary { cursor: pointer; }
</style>
<h1>Endpoints</h1>
<p>In OpenAI's form: any client made for it works with this server's address. The whole description lies at
<a href="openapi.json">openapi.json</a>.</p>
<noscript>This page reads openapi.json with a script; open that file instead.</noscript>
<main id="list" aria-live="polite">Reading…</main>
<script>
"use strict";
const made = (tag, text, ...inner) => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...inner);
  return node;
};
const kind = (schema, all) => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return [...new Set(schema.anyOf.map(s => kind(s, all)))].join(" or ");
  if (schema.enum) return schema.enum.map(v => JSON.stringify(v)).join(", ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return "list of " + (kind(schema.items, all) || "anything");
  return schema.type || "anything";
};
const fields = (name, all) => {
  const schema = all[name], table = made("table");
  table.append(made("tr", "", made("th", "field"), made("th", "type"), made("th", "about")));
  for (const [field, about] of Object.entries(schema.properties || {})) {
    const needed = (schema.required || []).includes(field) ? " (needed)" : "";
    table.append(made("tr", "", made("td", "", made("code", field)),
      made("td", kind(about, all) + needed), made("td", about.description || "")));
  }
  return made("details", "", made("summary", name), table);
};
const named = (content, all) => {
  const schema = Object.values(content || {})[0]?.schema || {};
  const name = schema.$ref?.split("/").pop();
  return name && all[name] ? [fields(name, all)] : [];
};
fetch("openapi.json").then(answer => answer.json()).then(api => {
  const list = document.getElementById("list"), all = api.components?.schemas || {};
  list.textContent = "";
  for (const [path, verbs] of Object.entries(api.paths)) for (const [verb, about] of Object.entries(verbs)) {
    const head = made("h2", "", made("span", verb.toUpperCase()), path);
    head.firstChild.className = "verb";
    list.append(head, made("p", about.description || about.summary || ""),
      ...named(about.requestBody?.content, all), ...named(about.responses?.["200"]?.content, all));
  }
}).catch(() => {
  document.getElementById("list").textContent = "openapi.json could not be read; load again.";
});
</script>
</html>
"""
