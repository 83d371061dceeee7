"use strict";
(() => {
  // A table's headers become buttons that sort its rows; empty cells always go last.
  const value = (row, at) => {
    const cell = row.querySelector(`[data-at="${at}"]`);
    return cell && cell.dataset.value !== "" ? Number(cell.dataset.value) : null;
  };
  const sort = (table, head, at) => {
    const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.dataset.first === "descending";
    for (const other of table.tHead.rows[1].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const x = value(a, at), y = value(b, at);
      if (x === null || y === null) return (x === null) - (y === null);
      return down ? y - x : x - y;
    });
    table.tBodies[0].append(...rows);
  };
  const table = document.querySelector("table.summary");
  if (table) {
    for (const head of table.tHead.rows[1].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = head.title;
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head, head.dataset.at));
    }
  }

  // Two methods picked, the rows on which they differ shown. Texts are only ever set as text.
  const source = document.getElementById("examples-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const [before, after] = ["before", "after"].map((name) => document.getElementById(name));
  const make = (tag, style, ...inner) => {
    const element = document.createElement(tag);
    if (style) element.className = style;
    element.append(...inner);
    return element;
  };
  const badge = (method) => make("span", `badge m${method.rank % 9}${method.trained ? " disc" : ""}`, method.mark);
  const said = (term, text, style) => {
    const content = make("dd", style, text);
    content.dir = "auto";
    return make("div", "", make("dt", "", term), content);
  };
  const item = (row, i, j) => {
    const text = make("p", "text", data.words[data.rows[row][0]]);
    text.dir = "auto";
    const style = (m) => (data.judged ? (data.right[m][row] === "1" ? "hit" : "miss") : "");
    const list = make("dl", "said", said("answer", data.words[data.rows[row][1]], ""));
    for (const m of [i, j]) list.append(said(badge(data.methods[m]), data.words[data.said[m][row]], style(m)));
    return make("li", "", text, list);
  };
  const fill = (name, rows, count, i, j) => {
    const part = document.getElementById(name);
    if (!part) return;
    const list = part.querySelector("ol");
    list.replaceChildren(...rows.slice(0, data.shown).map((row) => item(row, i, j)));
    const number = part.querySelector(".count");
    const shown = list.children.length;
    number.textContent = shown < count ? `${count} rows, ${shown} shown` : count === 1 ? "1 row" : `${count} rows`;
  };
  const show = () => {
    const i = Number(before.value), j = Number(after.value);
    const all = data.rows.map((_, row) => row);
    const went = (from, to) => all.filter((row) => data.right[i][row] === from && data.right[j][row] === to);
    if (data.judged) {
      fill("gained", went("0", "1"), data.gains[i][j], i, j);
      fill("lost", went("1", "0"), data.gains[j][i], i, j);
    } else {
      fill("gained", all, Math.min(all.length, data.shown), i, j);
    }
  };
  before.addEventListener("change", show);
  after.addEventListener("change", show);
  document.querySelector(".choose").hidden = false;
  document.querySelector(".chosen").hidden = true;
})();
