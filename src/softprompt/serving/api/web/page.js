/* The page: which columns there are, what is typed, and when it is asked. */

import { Refusal, asked, key, useKey } from "./asking.js";
import { headline, inShort, made } from "./card.js";
import { Column } from "./column.js";

const MOST = 4;
const CHOSEN = "softprompt.columns";
const $ = id => document.getElementById(id);

let models = [];
const columns = [];
let round = 0;

/* -- what there is --------------------------------------------------------------------------- */

async function load() {
  $("trouble").hidden = true;
  try {
    models = (await asked("v1/models")).data;
  } catch (error) {
    if (error.status === 401) return lock(error.message);
    $("told").textContent = error instanceof Refusal ? error.message : "The page could not start; load it again.";
    $("trouble").hidden = false;
    return false;
  }
  $("locked").hidden = true;
  $("forget").hidden = !key();
  document.querySelector("main").hidden = false;
  const base = models.find(model => model.softprompt.kind === "base");
  $("served").textContent = base ? `serving ${base.id}` : "";
  return true;
}

function lock(why) {
  $("why").textContent = key() ? why : "This server asks for a key.";
  $("locked").hidden = false;
  $("forget").hidden = true;
  $("key").value = "";
  $("key").focus();
  return false;
}

async function start() {
  if (!(await load()) || columns.length) return;
  const known = new Map(models.map(model => [model.id, model]));
  const base = models.filter(model => model.softprompt.kind === "base");
  const prompts = models.filter(model => model.softprompt.kind !== "base");
  const before = recalled().map(name => known.get(name)).filter(Boolean);
  for (const model of before.length ? before.slice(0, MOST) : [...prompts.slice(0, 2), ...base]) add(model);
  $("text").focus();
}

function recalled() {
  try {
    const names = JSON.parse(sessionStorage.getItem(CHOSEN));
    return Array.isArray(names) ? names : [];
  } catch {
    return [];
  }
}

function recall() {
  try {
    sessionStorage.setItem(CHOSEN, JSON.stringify(columns.map(column => column.name)));
  } catch { /* storage is shut: the choice lasts as long as the page */ }
}

/* -- columns --------------------------------------------------------------------------------- */

function add(model) {
  const column = new Column(model, remove);
  columns.push(column);
  $("columns").append(column.node);
  if (model.softprompt.choices) column.learn().then(drawFields, () => {});
  changed();
}

function remove(column) {
  column.stop();
  columns.splice(columns.indexOf(column), 1);
  column.node.remove();
  changed();
  if (!$("chooser").open) $("choose").focus();
}

function changed() {
  recall();
  drawFields();
  $("columns").classList.toggle("none", !columns.length);
}

/** One input for the plain text where a column takes it, and one for each further column of a row. */
function drawFields() {
  const wanted = new Map();
  for (const column of columns) {
    for (const name of column.fields) wanted.set(name, [...(wanted.get(name) ?? []), column]);
  }
  const there = new Map([...$("fields").querySelectorAll("[data-name]")].map(input => [input.dataset.name, input]));
  for (const [name, input] of there) if (!wanted.has(name)) input.closest(".field").remove();
  let number = $("fields").children.length;
  for (const [name, users] of wanted) {
    const list = users.some(column => column.card?.template?.choice_list && column.card.template.choice_columns[0] === name);
    const hint = `for ${users.map(column => column.name).join(", ")}${list ? "; one choice a line" : ""}`;
    const known = there.get(name);
    if (known) {
      known.closest(".field").querySelector(".hint").textContent = hint;
      known.dataset.list = list ? "yes" : "";
      continue;
    }
    const id = `field-${Date.now().toString(36)}-${number++}`;
    const input = made("textarea", { id, rows: "3", "data-name": name, "data-list": list ? "yes" : "", "aria-describedby": `${id}-hint` });
    $("fields").append(made("div", { class: "field" }, made("label", { for: id }, name), made("p", { class: "hint", id: `${id}-hint` }, hint), input));
  }
  $("plain").hidden = columns.length > 0 && !columns.some(column => column.plain);
}

/* -- asking ---------------------------------------------------------------------------------- */

async function askAll() {
  if (!$("composer").reportValidity()) return;
  const text = $("text").value, row = {};
  for (const input of $("fields").querySelectorAll("[data-name]")) {
    const lines = input.value.split("\n").map(line => line.trim()).filter(Boolean);
    row[input.dataset.name] = input.dataset.list ? lines : input.value;
  }
  if (!columns.length) return tell("Choose a prompt first.");
  const own = ++round;
  $("stop").disabled = false;
  tell("Asking.");
  await Promise.all(columns.map(column => column.ask(text, row, sampling())));
  if (own !== round) return;
  $("stop").disabled = true;
  tell(columns.map(column => column.spoken).join(". "));
}

function stopAll() {
  if ($("stop").disabled) return;
  round++;
  for (const column of columns) column.stop();
  if (document.activeElement === $("stop")) $("text").focus();
  $("stop").disabled = true;
  tell("Stopped.");
}

function sampling() {
  const wanted = { max_tokens: $("tokens").valueAsNumber, temperature: $("temperature").valueAsNumber };
  const seed = $("seed").valueAsNumber;
  return Number.isNaN(seed) ? wanted : { ...wanted, seed };
}

function drawSampling() {
  const { max_tokens: most, temperature, seed } = sampling();
  const parts = [`Up to ${Number.isNaN(most) ? "?" : most.toLocaleString("en")} tokens`];
  parts.push(temperature === 0 ? "always the likeliest" : `temperature ${Number.isNaN(temperature) ? "?" : temperature}`);
  if (temperature !== 0 && seed !== undefined) parts.push(`seed ${seed}`);
  $("drawn").textContent = parts.join(", ");
}

function tell(sentence) {
  $("status").textContent = sentence;
}

/* -- choosing -------------------------------------------------------------------------------- */

async function choose() {
  $("search").value = "";
  drawShelf();
  $("chooser").showModal();
  $("search").focus();
  const names = () => models.map(model => model.id).join("\n");
  const before = names();
  if (!(await load())) $("chooser").close();
  else if (names() !== before) drawShelf();
}

function drawShelf() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = models.filter(model => {
    const about = [model.id, inShort(model), ...(model.softprompt.labels ?? [])].join(" ").toLowerCase();
    return words.every(word => about.includes(word));
  });
  $("shelf").replaceChildren(...found.map(onShelf));
  countShelf();
}

/** What may still be chosen; the list stays as it is, and so does the focus in it. */
function countShelf() {
  const boxes = [...$("shelf").querySelectorAll("input")], left = MOST - columns.length;
  for (const box of boxes) box.disabled = !left && !box.checked;
  const room = left ? `room for ${left} more` : `${MOST} columns are the most`;
  $("count").textContent = `${boxes.length} of ${models.length}, ${room}.`;
  if (models.length < 2) $("count").textContent = "There are no prompts in this library yet, or none for this key.";
}

function onShelf(model) {
  const box = made("input", { type: "checkbox", checked: columns.some(column => column.name === model.id) });
  box.addEventListener("change", () => {
    if (box.checked) add(model);
    else remove(columns.find(column => column.name === model.id));
    countShelf();
  });
  const labels = model.softprompt.labels?.join(", ");
  const about = [inShort(model), headline(model.softprompt.scores)].filter(Boolean).join(" · ");
  return made("li", {}, made("label", {}, box, made("span", {}, made("b", {}, model.id), made("small", {}, about), labels ? made("small", { class: "few" }, labels) : null)));
}

/* -- wiring ---------------------------------------------------------------------------------- */

$("composer").addEventListener("submit", event => {
  event.preventDefault();
  askAll();
});
document.addEventListener("keydown", event => {
  if ($("chooser").open || document.querySelector("main").hidden || event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    askAll();
  } else if (event.key === "Escape") stopAll();
});
$("stop").addEventListener("click", stopAll);
$("drawing").addEventListener("click", () => {
  const open = $("sampling").hidden;
  $("sampling").hidden = !open;
  $("drawing").setAttribute("aria-expanded", String(open));
  if (open) $("tokens").focus();
});
$("sampling").addEventListener("input", drawSampling);
$("composer").addEventListener("invalid", () => {
  $("sampling").hidden = false;
  $("drawing").setAttribute("aria-expanded", "true");
}, true);
$("choose").addEventListener("click", choose);
$("search").addEventListener("input", drawShelf);
$("done").addEventListener("click", () => $("chooser").close());
$("chooser").addEventListener("click", event => {
  if (event.target === $("chooser")) $("chooser").close();
});
$("again").addEventListener("click", start);
$("columns").addEventListener("locked", event => lock(event.detail));
$("forget").addEventListener("click", () => {
  useKey("");
  stopAll();
  location.reload();
});
$("locked").addEventListener("submit", event => {
  event.preventDefault();
  try {
    useKey($("key").value);
  } catch (error) {
    $("why").textContent = error.message;
    return;
  }
  start();
});
if (/Mac|iPhone|iPad/.test(navigator.platform)) $("shortcut").textContent = "⌘ ↵";
drawSampling();
start();
