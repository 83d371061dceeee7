/* One column: a prompt, its answer as it is written, the shares of its labels, and its card. */

import { Refusal, asked, events } from "./asking.js";
import { counted, inShort, made, opened } from "./card.js";

const MOST_BARS = 8;
const TELLING = { tokens: 4, milliseconds: 10 }; // a shorter answer says nothing about speed
let numbers = 0;

/** Something that can be asked, and the place where its answer appears. */
export class Column {
  /** `model` is what /v1/models tells of it; `removed` is called when its reader takes it away. */
  constructor(model, removed) {
    this.model = model;
    this.card = null;
    this.running = null;
    const id = `column-${++numbers}`;
    this.title = made("h2", { id }, model.id);
    this.toggle = made("button", { type: "button", class: "plain", "aria-expanded": "false", "aria-controls": `${id}-card`, "aria-label": `Card of ${model.id}` }, "Card");
    const remove = made("button", { type: "button", class: "plain cross", "aria-label": `Remove ${model.id}`, title: "Remove" }, "×");
    this.answer = made("div", { class: "answer", "aria-label": `Answer of ${model.id}`, role: "group" }, this.nothing());
    this.bars = made("div", { class: "bars" });
    this.fault = made("div", { class: "fault", role: "alert" });
    this.measured = made("dl", { class: "measured" });
    this.about = made("div", { class: "card", id: `${id}-card`, role: "region", "aria-label": `Card of ${model.id}`, hidden: true });
    const told = made("div", { class: "told" }, this.answer, this.fault, this.bars, this.measured);
    const head = made("div", { class: "head" }, this.title, this.toggle, remove, made("p", { class: "soft" }, inShort(model)));
    this.node = made("section", { class: "column", "aria-labelledby": id }, head, told, this.about);
    this.toggle.addEventListener("click", () => this.open(this.about.hidden));
    remove.addEventListener("click", () => removed(this));
  }

  get name() {
    return this.model.id;
  }

  /** The columns a row needs beyond one plain text; none for most. */
  get fields() {
    const { fields } = this.model.softprompt;
    return [...(fields.length > 1 ? fields : []), ...(this.card?.template?.choice_columns ?? [])];
  }

  /** Whether the one plain text goes into it. */
  get plain() {
    return this.model.softprompt.fields.length < 2;
  }

  nothing() {
    return made("p", { class: "soft" }, "Nothing asked yet.");
  }

  /** Ask. `text` is the one text, `row` the values by column, `sampling` how answers are drawn. */
  async ask(text, row, sampling) {
    this.stop();
    const running = this.running = new AbortController();
    for (const part of [this.answer, this.bars, this.fault, this.measured]) part.replaceChildren();
    this.node.classList.remove("stopped");
    this.answer.setAttribute("aria-busy", "true");
    const { labels, choices, fields } = this.model.softprompt;
    const body = { model: this.name, prompt: text, stream: true, stream_options: { include_usage: true }, ...sampling };
    const input = fields.length === 1 && this.plain ? { ...row, [fields[0]]: text } : row;
    const work = this.plain ? [this.write(body, running.signal)] : [];
    if (labels) work.push(this.weigh(this.plain ? text : input, running.signal));
    else if (choices && this.fields.every(name => row[name]?.length)) work.push(this.weigh(input, running.signal));
    else if (!this.plain) this.say("It reads several columns and has no labels; such a prompt answers in Python and on the command line.");
    await Promise.all(work.map(part => part.catch(error => this.failed(error, running.signal))));
    if (this.running !== running) return;
    this.running = null;
    this.answer.removeAttribute("aria-busy");
    if (!this.answer.textContent) this.answer.replaceChildren();
    if (!this.answer.textContent.trim() && !this.fault.firstChild && !this.bars.firstChild) this.answer.append(made("p", { class: "soft" }, "An empty answer."));
    if (!this.about.hidden && !this.model.softprompt.digest) await this.open(true);
  }

  /** Stop what runs; what was written stays. */
  stop() {
    if (!this.running) return;
    this.running.abort();
    this.running = null;
    this.answer.removeAttribute("aria-busy");
    this.node.classList.add("stopped");
    this.measured.replaceChildren(made("dt", {}, "Stopped"), made("dd", {}, "by you"));
  }

  /** What a reader who cannot see the page should hear of it. */
  get spoken() {
    const said = this.fault.textContent || this.answer.textContent.trim() || this.bars.querySelector("li")?.textContent || "nothing";
    return `${this.name}: ${said}`;
  }

  async write(body, signal) {
    const lead = this.answer.appendChild(made("span", { hidden: true })); // white space in front: said, not shown
    const text = this.answer.appendChild(document.createTextNode(""));
    const begun = performance.now();
    let first = null, last = null, usage = null, reason = null;
    for await (const event of events("v1/completions", body, signal)) {
      if (signal.aborted) return;
      const choice = event.choices[0];
      usage = event.usage ?? usage;
      reason = choice?.finish_reason ?? reason;
      if (!choice) continue;
      last = performance.now();
      if (choice.text) first ??= last;
      const blank = text.data ? "" : choice.text.match(/^\s*/)[0];
      lead.append(blank);
      text.appendData(choice.text.slice(blank.length));
    }
    this.measure(first === null ? null : first - begun, last - first, usage, reason);
  }

  measure(wait, span, usage, reason) {
    const add = (name, value, more) => this.measured.append(made("div", {}, made("dt", {}, name), made("dd", {}, value, more ? made("small", {}, more) : null)));
    const written = usage?.completion_tokens ?? 0, virtual = usage?.prompt_tokens_details?.virtual_tokens ?? 0;
    add("First token", wait === null ? "–" : `${Math.round(wait).toLocaleString("en")} ms`);
    const tells = wait !== null && written >= TELLING.tokens && span >= TELLING.milliseconds;
    add("Speed", tells ? `${(1000 * (written - 1) / span).toFixed(1)} tokens/s` : "–");
    if (!usage) return;
    add("Read", counted(usage.prompt_tokens, "token"), `and ${virtual.toLocaleString("en")} virtual`);
    add("Wrote", counted(written, "token"), reason === "length" ? "cut at your limit" : "to its end");
  }

  async weigh(input, signal) {
    const found = await asked("v1/classify", { model: this.name, input }, signal);
    if (signal.aborted) return;
    const shares = Object.entries(found.data[0].probabilities).sort((a, b) => b[1] - a[1]);
    const list = part => made("ol", {}, ...part.map(([label, share]) => bar(label, share)));
    this.bars.replaceChildren(made("h3", {}, "Labels"), list(shares.slice(0, MOST_BARS)));
    const rest = shares.slice(MOST_BARS);
    if (rest.length) this.bars.append(made("details", {}, made("summary", {}, `${rest.length} less likely`), list(rest)));
  }

  failed(error, signal) {
    if (signal.aborted) return;
    if (!(error instanceof Refusal)) console.error(error);
    this.say(error instanceof Refusal ? error.message : "The page failed at this answer; load it again.");
    if (error.status === 401) this.node.dispatchEvent(new CustomEvent("locked", { bubbles: true, detail: error.message }));
  }

  /** Show a sentence once, however often it is said. */
  say(sentence) {
    if ([...this.fault.children].some(said => said.textContent === sentence)) return;
    this.fault.append(made("p", {}, sentence));
  }

  /** Learn what the card says; errors as in `asked`. */
  async learn() {
    const name = encodeURIComponent(this.name);
    [this.model, this.card] = await Promise.all([asked(`v1/models/${name}`), asked(`v1/cards/${name}`)]);
  }

  /** Open the card, as it is now, or close it. */
  async open(wanted) {
    this.about.hidden = !wanted;
    this.node.classList.toggle("open", wanted);
    this.toggle.setAttribute("aria-expanded", String(wanted));
    if (!wanted) return;
    try {
      await this.learn();
      this.about.replaceChildren(...opened(this.model, this.card));
    } catch (error) {
      this.about.replaceChildren(made("p", { class: "fault" }, error instanceof Refusal ? error.message : "The card could not be read."));
    }
  }
}

function bar(label, share) {
  const fill = made("span", { class: "fill", "aria-hidden": "true" });
  fill.style.width = `${100 * share}%`;
  return made("li", {}, made("span", { class: "label" }, label), " ", made("span", { class: "share" }, percent(share)), made("span", { class: "track" }, fill));
}

/** Only what cannot be is 0 %, and only what is certain 100 %. */
function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return share > 0.999 && share < 1 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
}
