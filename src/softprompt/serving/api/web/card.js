/* What is known about a prompt, as elements: knows cards and scores, not how a prompt is asked. All text from
   cards is a stranger's and is only ever set as text. */

const METHODS = { base: "bare base", lora: "LoRA", qlora: "QLoRA", full: "full fine-tuning" };
const METRICS = { nll: "loss, nats", macro_f1: "macro F1", weighted_f1: "weighted F1", mcc: "MCC" };
const FIRST = ["accuracy", "macro_f1", "nll"];

/** An element with attributes and children; strings become text. */
export function made(tag, about = {}, ...inner) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...inner.filter(part => part !== null));
  return node;
}

/** The method in words. */
export function method(kind) {
  return METHODS[kind] ?? kind.replaceAll("-", " ");
}

/** "20 positions". */
export function counted(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}

/** What one line can say of a prompt. */
export function inShort(model) {
  const { kind, positions } = model.softprompt;
  if (kind === "base") return "the base itself, goes on from your text";
  return `${method(kind)}, ${counted(positions, "position")}`;
}

/** The best-known score in a few letters: test before validation. */
export function headline(scores) {
  for (const split of ["test", "validation"]) {
    const value = scores?.[split]?.accuracy;
    if (typeof value === "number") return `${split} accuracy ${value.toFixed(3)}`;
  }
  return "";
}

/** A card, opened. `model` is what /v1/models tells, `card` what /v1/cards adds to it. */
export function opened(model, card) {
  const told = model.softprompt;
  return [facts(model, card), template(card.template), ...(told.kind === "base" ? [] : [scores(told.scores)])]
    .filter(part => part !== null);
}

function facts(model, card) {
  const { kind, positions, digest } = model.softprompt;
  const list = made("dl", { class: "facts" });
  const add = (name, value, about = {}) => list.append(made("dt", {}, name), made("dd", about, value));
  add("Method", method(kind));
  if (kind !== "base") add("Positions", positions.toLocaleString("en"));
  add("Base", `${card.base.name}, ${card.base.dtype}`);
  if (kind === "base" && card.base.positions) add("Context", counted(card.base.positions, "position"));
  if (model.created) add("Made", new Date(1000 * model.created).toISOString().slice(0, 10));
  const short = digest?.replace("sha256:", "");
  if (short) add("Digest", short.slice(0, 12), { class: "mono", title: short });
  else add("Digest", "known once it is loaded", { class: "soft" });
  return list;
}

function template(about) {
  if (!about) return null;
  const list = made("dl", { class: "template" });
  const add = (name, text) => list.append(made("dt", {}, name), made("dd", {}, text ? marked(text) : "nothing"));
  add("Front", about.front);
  add("Input", about.input);
  add("Target", about.target);
  if (about.labels) list.append(made("dt", {}, "Labels"), made("dd", {}, labels(about.labels)));
  return made("div", {}, made("h4", {}, "Template"), list);
}

/** A template with its fields set apart; line ends are shown as they are. */
function marked(text) {
  const parts = text.split(/(\{\{|\}\}|\{[^{}]*\})/).filter(Boolean);
  const field = part => /^\{[^{}]+\}$/.test(part);
  return made("pre", {}, ...parts.map(part => (field(part) ? made("b", {}, part) : part)));
}

/** Labels with their words, where these differ. */
function labels(words) {
  const list = made("ul", { class: "labels" });
  for (const [label, word] of Object.entries(words)) {
    list.append(made("li", {}, label === word ? label : `${label} → ${word}`));
  }
  return list;
}

function scores(splits) {
  const groups = order(Object.keys(splits ?? {})).map(name => group(name, splits[name])).filter(Boolean);
  const title = made("h4", {}, "Scores");
  if (!groups.length) return made("div", {}, title, made("p", { class: "soft" }, "None are kept with it."));
  const unread = "test" in splits ? "" : " The test split was not read.";
  return made("div", {}, title,
    made("table", {}, made("caption", { class: "unseen" }, "Scores with 95% intervals"), ...groups),
    made("p", { class: "hint" }, `With 95% intervals.${unread}`));
}

/** The rows of a table about one split. */
function group(name, split) {
  const metrics = order(Object.keys(split).filter(metric => shown(split[metric], metric)), FIRST);
  if (!metrics.length) return null;
  const count = typeof split.rows === "number" ? made("small", {}, counted(split.rows, "row")) : null;
  const line = metric => made("tr", {}, made("th", { scope: "row" }, METRICS[metric] ?? metric.replaceAll("_", " ")),
    made("td", {}, split[metric].toFixed(3)), made("td", {}, made("small", {}, spread(split[`${metric}_interval`]))));
  return made("tbody", {}, made("tr", {}, made("th", { scope: "rowgroup", colspan: "3" }, name, " ", count)), ...metrics.map(line));
}

function spread(interval) {
  const whole = Array.isArray(interval) && interval.length === 2 && interval.every(end => typeof end === "number");
  return whole ? interval.map(end => end.toFixed(3)).join("–") : "";
}

function shown(value, name) {
  return typeof value === "number" && name !== "rows";
}

function order(names, first = ["validation", "test"]) {
  const rank = name => (first.includes(name) ? first.indexOf(name) : first.length);
  return [...names].sort((a, b) => rank(a) - rank(b));
}
