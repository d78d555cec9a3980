// Browsing of rows: filter, pages, one row opened at a time. What a model said is only ever set as text.
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
// Places in a row, as the report writes them.
const [NUMBER, SUITE, TASK, METHOD, LENGTH, DEPTH, ID, SCORE, TAIL, EXPECTED, PREDICTION, NOTE, REFUSED, TOKENS, SECONDS, PEAK,
  EVIDENCE, PARTS] = Array(18).keys();
const PAGE = 50;
const SHOW = { failures: "failures", wrong: "wrong", partly: "partly right", right: "right", refused: "refused", all: "all" };
const ORDER = { table: "as in tables", score: "lowest score", time: "slowest", generated: "longest answer" };

const text = (number) => number === null ? "" : data.texts[number];
const short = (n) => n >= 1 << 20 && n % (1 << 20) === 0 ? (n >> 20) + "m" : n >= 1024 && n % 1024 === 0 ? (n >> 10) + "k" : String(n);
const grouped = (n) => n.toLocaleString("en-US");
const outcome = (row) => {
  const score = row[SCORE];
  if (score === null) return row[REFUSED] === null ? "unscored" : "refused";
  return score >= 1 ? "right" : score > 0 ? "partly" : "wrong";
};
const failed = (of) => of === "wrong" || of === "partly" || of === "refused";
// Signs that nobody sees, or that turn the direction of text, are shown as signs.
const visible = (s) => s.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]/g,
  (c) => "⟨U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩");
const outcomes = data.rows.map(outcome);
const start = { suite: "", task: "", method: "", length: "", show: outcomes.some(failed) ? "failures" : "all", order: "table", q: "" };
let state = { ...start }, found = [], page = 0, open = null;

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "text") node.textContent = value;
    else if (name === "on") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([v, name]) => el("option", { value: v, text: visible(name) })));
  select.value = pairs.some(([v]) => v === value) ? value : pairs[0][0];
  select.parentElement.hidden = pairs.length < 3 && pairs[0][1] === "all";
}

// The choices; tasks are those of the suite.
function choices() {
  const named = (list) => [["", "all"], ...list.map((name) => [name, name])];
  const suite = data.suites.indexOf(state.suite);
  const tasks = new Set(data.rows.filter((r) => suite < 0 || r[SUITE] === suite).map((r) => r[TASK]));
  if (state.task && !tasks.has(data.tasks.indexOf(state.task))) state.task = "";
  options($("suite"), named(data.suites), state.suite);
  options($("task"), named(data.tasks.filter((_, i) => tasks.has(i))), state.task);
  options($("method"), named(data.methods), state.method);
  options($("length"), [["", "all"], ...data.lengths.map((l) => [String(l), short(l)])], state.length);
  const count = (of) => of === "all" ? data.rows.length : outcomes.filter((o) => of === "failures" ? failed(o) : o === of).length;
  options($("show"), Object.entries(SHOW).map(([v, name]) => [v, name + " (" + grouped(count(v)) + ")"]), state.show);
  options($("order"), Object.entries(ORDER), state.order);
  $("search").value = state.q;
}

function search() {
  const place = (list, name) => name === "" ? -1 : list.indexOf(name);
  const suite = place(data.suites, state.suite), task = place(data.tasks, state.task), method = place(data.methods, state.method);
  const length = state.length === "" ? null : Number(state.length);
  let hit = null;
  if (state.q) {
    const pattern = new RegExp(state.q.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i");
    hit = data.texts.map((t) => pattern.test(t));
  }
  const matches = (r) => [ID, TAIL, EXPECTED, PREDICTION, NOTE, REFUSED].some((place) => r[place] !== null && hit[r[place]]);
  found = [];
  data.rows.forEach((r, i) => {
    const o = outcomes[i];
    if ((suite < 0 || r[SUITE] === suite) && (task < 0 || r[TASK] === task) && (method < 0 || r[METHOD] === method)
      && (length === null || r[LENGTH] === length)
      && (state.show === "all" || o === state.show || (state.show === "failures" && failed(o)))
      && (!hit || matches(r))) found.push(i);
  });
  const by = {
    score: (r) => r[SCORE] === null ? 2 : r[SCORE],
    time: (r) => -(r[SECONDS][0] + r[SECONDS][1]),
    generated: (r) => -r[TOKENS][5],
  }[state.order];
  if (by) found.sort((a, b) => by(data.rows[a]) - by(data.rows[b]) || a - b);
}

// Shows the page of rows that holds the open one, or the first.
function show(remember = true) {
  const at = open === null ? -1 : found.indexOf(open);
  if (at >= 0) page = Math.floor(at / PAGE); else open = null;
  page = Math.max(0, Math.min(page, Math.ceil(found.length / PAGE) - 1));
  const from = page * PAGE, rows = found.slice(from, from + PAGE);
  const total = data.rows.length < data.total ? grouped(data.rows.length) + " embedded" : grouped(data.total);
  $("count").textContent = found.length
    ? grouped(from + 1) + "–" + grouped(from + rows.length) + " of " + grouped(found.length) + (found.length < data.rows.length ? " (" + total + " rows)" : " rows")
    : "no row of " + total + " is like this";
  $("previous").disabled = page === 0;
  $("next").disabled = from + PAGE >= found.length;
  $("list").replaceChildren(rows.length ? list(rows) : "");
  if (remember) write();
}

function list(rows) {
  const has = (place) => found.some((i) => data.rows[i][place] !== null);
  const columns = [["outcome", "row"], ["task", "task"], has(LENGTH) && ["tokens", "tokens"], has(DEPTH) && ["depth", "depth %"],
    data.methods.length > 1 && ["method", "method"], ["expected", "expected"], ["prediction", "answer"], has(SCORE) && ["score", "score, %"]].filter(Boolean);
  const number = (name) => ["tokens", "depth", "score"].includes(name) ? " n" : "";
  const head = el("tr", {}, ...columns.map(([name, title]) => el("th", { scope: "col", class: "c-" + name + number(name), text: title })));
  const body = el("tbody");
  for (const i of rows) {
    const r = data.rows[i], line = el("tr", { class: "row" });
    for (const [name] of columns) line.append(el("td", { class: "c-" + name + number(name) }, cell(name, r, i)));
    line.addEventListener("click", () => toggle(i));
    body.append(line);
    if (i === open) body.append(detailRow(i, columns.length));
  }
  return el("table", { "aria-label": "rows" }, el("thead", {}, head), body);
}

function cell(name, r, i) {
  const clip = (number) => el("bdi", { text: visible(text(number).slice(0, 160).replace(/\s+/g, " ").trim()) });
  switch (name) {
    case "outcome": return el("button", { type: "button", class: "open " + outcomes[i], "aria-expanded": String(i === open), "data-row": i, text: outcomes[i] });
    case "task": {
      const suite = data.suites[r[SUITE]], task = data.tasks[r[TASK]];
      return el("span", { text: visible(data.suites.length > 1 && !state.suite && suite !== task ? suite + " " + task : task) });
    }
    case "tokens": return el("span", { text: r[LENGTH] === null ? "" : short(r[LENGTH]) });
    case "depth": return el("span", { text: r[DEPTH] === null ? "" : Math.round(r[DEPTH]) });
    case "method": return el("span", { text: visible(data.methods[r[METHOD]]) });
    case "expected": return clip(r[EXPECTED]);
    case "prediction": return clip(r[outcomes[i] === "refused" ? REFUSED : PREDICTION]);
    default: return el("span", { text: r[SCORE] === null ? "–" : (100 * r[SCORE]).toFixed(2) });
  }
}

function toggle(i) {
  open = open === i ? null : i;
  show();
  focusRow(i);
}

function focusRow(i) {
  const button = document.querySelector('[data-row="' + i + '"]');
  if (button) { button.focus({ preventScroll: true }); button.scrollIntoView({ block: "nearest" }); }
}

// Text with the places where the answer stands marked.
function marked(s, answers) {
  const known = answers.filter((a) => a.length > 1 && a.length < 200).map((a) => a.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!known.length) return [visible(s)];
  return s.split(new RegExp("(" + known.join("|") + ")")).map((part, i) => i % 2 ? el("mark", { text: visible(part) }) : visible(part));
}

function detailRow(i, columns) {
  const r = data.rows[i], answers = text(r[EXPECTED]).split("\n").map((a) => a.trim()).filter(Boolean);
  const block = (title, ...content) => el("div", {}, el("h3", { text: title }), el("pre", { dir: "auto", tabindex: "0" }, ...content));
  const parts = [block("end of the prompt", visible(text(r[TAIL]).replace(/^\n+/, "")))];
  if (r[REFUSED] !== null) parts.push(block("refused", visible(text(r[REFUSED]))));
  parts.push(el("div", { class: "pair" }, block("expected", visible(text(r[EXPECTED]))), block("answer", ...marked(text(r[PREDICTION]), answers))));
  if (r[NOTE] !== null) parts.push(el("h3", { text: "note" }), el("div", { text: visible(text(r[NOTE])) }));
  parts.push(numbers(r));
  if (r[EVIDENCE].length) {
    parts.push(el("h3", { text: "where the answer looked most, by share of attention" }), el("ul", { class: "evidence" }, ...r[EVIDENCE].map((e) => passage(e, answers))));
  }
  const others = sameQuestion(i);
  if (others.length) parts.push(el("h3", { text: "the same question under other methods" }), el("div", { class: "others" }, ...others));
  return el("tr", { class: "detail" }, el("td", { colspan: columns }, ...parts));
}

function passage([source, line, weight, passage], answers) {
  const bar = el("i");
  bar.style.width = Math.min(100, 100 * weight) + "%";
  return el("li", {},
    el("div", { class: "where" }, el("bdi", { text: visible(text(source)) + ":" + line }), " · " + (100 * weight).toFixed(1) + " %", el("span", { class: "weight" }, bar)),
    el("div", { class: "text", dir: "auto" }, ...marked(text(passage), answers)));
}

function numbers(r) {
  const [prompt, context, cut, kept, attended, generated] = r[TOKENS], [read, answer] = r[SECONDS];
  const facts = [["id", visible(text(r[ID]))], ["score", r[SCORE] === null ? "none" : (100 * r[SCORE]).toFixed(2) + " %"],
    ...r[PARTS].map(([name, value]) => [visible(text(name)), (100 * value).toFixed(2) + " %"]),
    ["prompt tokens", grouped(prompt)], ["of the text", grouped(context)], cut && ["cut by the suite's rule", grouped(cut)], ["kept", grouped(kept)],
    ["keys seen at most", grouped(attended)], ["generated", grouped(generated)], ["reading", read + " s"], ["answering", answer + " s"],
    r[DEPTH] !== null && ["depth", r[DEPTH] + " %"], r[PEAK] !== null && ["peak memory", grouped(Math.floor(r[PEAK] / 1048576)) + " MiB"], ["row of rows.jsonl", grouped(r[NUMBER])]].filter(Boolean);
  return el("dl", { class: "numbers" }, ...facts.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
}

let questions = null;
function sameQuestion(i) {
  const key = (r) => [r[SUITE], r[TASK], r[LENGTH], r[ID]].join();
  if (!questions) {
    questions = new Map();
    data.rows.forEach((r, j) => { const k = key(r); if (questions.has(k)) questions.get(k).push(j); else questions.set(k, [j]); });
  }
  const go = (j) => (event) => { event.stopPropagation(); state.method = ""; state.show = "all"; open = j; refresh(); focusRow(j); };
  return questions.get(key(data.rows[i])).filter((j) => j !== i)
    .map((j) => el("button", { type: "button", on: go(j), text: visible(data.methods[data.rows[j][METHOD]]) + ": " + outcomes[j] }));
}

// The address: what differs from the beginning.
function write() {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value !== start[name]) fields.set(name, value);
  if (open !== null) fields.set("row", data.rows[open][NUMBER]);
  const hash = fields.toString();
  if (hash || location.hash.includes("=")) history.replaceState(null, "", "#" + (hash || "rows"));
}

function read() {
  if (!location.hash.includes("=")) return false;
  const fields = new URLSearchParams(location.hash.slice(1));
  state = { ...start };
  const known = { suite: data.suites, task: data.tasks, method: data.methods, length: data.lengths.map(String), show: Object.keys(SHOW), order: Object.keys(ORDER) };
  for (const name of Object.keys(start)) {
    const value = fields.get(name);
    if (value !== null && (name === "q" || known[name].includes(value))) state[name] = value;
  }
  const row = Number(fields.get("row"));
  open = row ? data.rows.findIndex((r) => r[NUMBER] === row) : null;
  if (open === -1) open = null;
  // A row that is named is shown, whatever else is asked for.
  if (open !== null) { search(); if (!found.includes(open)) state = { ...start, show: "all" }; }
  return true;
}

function refresh(remember = true) {
  choices();
  search();
  show(remember);
}

for (const name of ["suite", "task", "method", "length", "show", "order"]) {
  $(name).addEventListener("change", () => { state[name] = $(name).value; page = 0; open = null; refresh(); });
}
let waiting = 0;
$("search").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { state.q = $("search").value; page = 0; open = null; search(); show(); }, 150);
});
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("filter").addEventListener("reset", (event) => { event.preventDefault(); state = { ...start }; page = 0; open = null; refresh(); });
function turn(by) {
  const pages = Math.ceil(found.length / PAGE);
  if (page + by < 0 || page + by >= pages) return;
  page += by;
  open = null;
  show();
  focusRow(found[page * PAGE]);
}
$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target, typing = target.matches("input, select");
  if (event.key === "/" && !typing) { event.preventDefault(); $("search").focus(); return; }
  if (event.key === "Escape" && target === $("search")) { target.blur(); focusRow(found[page * PAGE]); return; }
  if (typing || !target.matches("[data-row], body")) return;
  const buttons = [...document.querySelectorAll("[data-row]")], at = buttons.indexOf(target);
  if (event.key === "Escape" && open !== null) toggle(open);
  else if (at < 0) return;
  else if (event.key === "ArrowDown") { (buttons[at + 1] || buttons[at]).focus(); event.preventDefault(); }
  else if (event.key === "ArrowUp") { (buttons[at - 1] || buttons[at]).focus(); event.preventDefault(); }
  else if (event.key === "ArrowRight") turn(1);
  else if (event.key === "ArrowLeft") turn(-1);
});
window.addEventListener("hashchange", () => { if (read()) { page = 0; refresh(false); } });
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));

for (const id of ["filter", "bar", "keys"]) $(id).hidden = false;
const linked = read();
refresh(false);
if (linked) $("rows").scrollIntoView({ behavior: "instant" });
})();
