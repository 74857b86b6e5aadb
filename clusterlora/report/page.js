"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);

/* Theme: the system's until somebody presses the button. */
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");

function setTheme(name) {
  root.dataset.theme = name;
  button.textContent = name === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to the ${name === "dark" ? "light" : "dark"} theme`);
}

/* Figures: colours that begin with @ are the page's variables. Only values of colour fields are looked at, never words of the data. */
const figures = read("figures");
const chosen = {};

function themed(value, field = "") {
  if (Array.isArray(value)) return value.map((inner) => themed(inner, field));
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, themed(inner, name)]));
  }
  const isColour = typeof value === "string" && field === "color" && value.startsWith("@");
  return isColour ? getComputedStyle(root).getPropertyValue(`--${value.slice(1)}`).trim() : value;
}

function merged(...layers) {
  const result = {};
  for (const layer of layers) {
    for (const [name, value] of Object.entries(layer)) {
      const isObject = value !== null && typeof value === "object" && !Array.isArray(value);
      result[name] = isObject ? merged(result[name] ?? {}, value) : value;
    }
  }
  return result;
}

function draw(anchor) {
  const figure = figures[anchor];
  const view = figure.views[chosen[anchor] ?? 0] ?? { layout: {} };
  const variable = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const axis = { gridcolor: variable("grid"), linecolor: variable("line"), zerolinecolor: variable("line"), ticks: "" };
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: variable("font"), size: 13.5, color: variable("ink") },
    // The tools stand in the margin on the right, where neither legend nor data are.
    margin: { l: 70, r: 48, t: 16, b: 56 },
    height: figure.height,
    hovermode: "closest",
    hoverlabel: { align: "left" },
    modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: variable("muted"), activecolor: variable("ink") },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: axis,
    yaxis: axis,
  };
  const data = figure.data.map((trace, place) => ({ ...themed(trace), visible: view.visible ? view.visible[place] : true }));
  const config = { responsive: true, displaylogo: false, displayModeBar: innerWidth < 640 ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  return Plotly.react(`figure-${anchor}`, data, themed(merged(base, figure.layout, view.layout)), config);
}

const drawAll = () => Promise.all(Object.keys(figures).map(draw));

button.addEventListener("click", () => {
  setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  drawAll();
});
dark.addEventListener("change", () => {
  setTheme(dark.matches ? "dark" : "light");
  drawAll();
});
/* Paper is white. */
let beforePrint = null;
window.addEventListener("beforeprint", () => {
  beforePrint = root.dataset.theme;
  setTheme("light");
  drawAll();
});
window.addEventListener("afterprint", () => {
  setTheme(beforePrint);
  drawAll();
});
for (const select of document.querySelectorAll("select[data-figure]")) {
  select.addEventListener("change", () => {
    chosen[select.dataset.figure] = Number(select.value);
    draw(select.dataset.figure);
  });
}

/* Tables that sort: cells without a value stay at the end. */
for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.querySelectorAll("th")) {
    heading.querySelector("button")?.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") !== "descending";
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const body = table.tBodies[0];
      const value = (row) => row.cells[heading.cellIndex].dataset.value;
      const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (descending ? -1 : 1);
      const known = [...body.rows].filter((row) => value(row) !== undefined);
      const unknown = [...body.rows].filter((row) => value(row) === undefined);
      body.append(...known.sort((one, other) => compare(value(one), value(other))), ...unknown);
    });
  }
}

/* Answers: made of text nodes only. */
const PER_PAGE = 12;
const answers = read("answers");
const list = document.getElementById("examples");
let shown = PER_PAGE;

function element(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

function answer(by, score, said, className) {
  return element("div", `answer ${className}`, element("div", "by", element("span", "", by), element("span", "", score)), element("p", "said", said));
}

function example(item) {
  const sign = answers.higherIsBetter ? 1 : -1;
  const best = Math.max(...item.answers.map((one) => sign * one.score));
  const score = (value) => (answers.percent ? (100 * value).toFixed(1) : value.toFixed(3));
  const given = item.answers.map((one) => {
    const by = one.method === answers.champion ? `${one.method} ★` : one.method;
    return answer(by, score(one.score), one.text || "(no words)", sign * one.score === best ? "best" : "");
  });
  return element(
    "article",
    "example",
    element("h3", "", item.persona_id, " ", element("span", "", `cluster ${item.cluster} · ${item.item_id}`)),
    element("p", "said prompt", item.prompt),
    element("div", "answers", answer("reference", "what was really said", item.reference, "reference-text"), ...given),
  );
}

if (list) {
  const people = [...new Set(answers.items.map((item) => item.persona_id))];
  const everything = (item) => [item.persona_id, item.prompt, item.reference, ...item.answers.map((one) => one.text)].join("\n").toLowerCase();
  const haystacks = answers.items.map(everything);
  const search = document.getElementById("search");
  const persona = document.getElementById("persona");
  const more = document.getElementById("more");

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const who = persona.value === "" ? null : people[Number(persona.value)];
    const found = answers.items.filter(
      (item, place) => (who === null || item.persona_id === who) && words.every((word) => haystacks[place].includes(word)),
    );
    list.replaceChildren(...found.slice(0, shown).map(example));
    more.hidden = found.length <= shown;
    document.getElementById("found").textContent = `${found.length} of ${answers.items.length} items`;
  };
  const restart = () => {
    shown = PER_PAGE;
    show();
  };
  search.addEventListener("input", restart);
  persona.addEventListener("change", restart);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    shown += PER_PAGE;
    show();
  });
  show();
}

/* Fonts: a character that no font here has is drawn as the same box as a code point that is none. */
const NO_CHARACTER = "\u{10FFFF}";
const MOST_CHECKED = 400;

function lackingCharacters(words) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [32, 32];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const drawn = (character) => {
    context.clearRect(0, 0, 32, 32);
    context.font = `20px ${getComputedStyle(document.body).fontFamily}`;
    context.fillText(character, 2, 24);
    return context.getImageData(0, 0, 32, 32).data.join();
  };
  const letters = [...new Set(words)].filter((one) => one > "\u024F" && /[\p{L}\p{Extended_Pictographic}]/u.test(one)).slice(0, MOST_CHECKED);
  const box = drawn(NO_CHARACTER);
  return letters.filter((one) => drawn(one) === box);
}

const lacking = lackingCharacters(document.body.innerText + JSON.stringify(answers.items));
if (lacking.length) {
  const what = lacking.length === 1 ? "1 character of this page is shown as a box" : `${lacking.length} characters of this page are shown as boxes`;
  const fix = "on Debian, fonts-noto-cjk has Chinese, Japanese and Korean, fonts-noto-core other scripts, fonts-noto-color-emoji emoji.";
  const note = element("p", "warning", `${what}, because no font on this computer has ${lacking.length === 1 ? "it" : "them"} (`, `${lacking.slice(0, 8).join(" ")}). Install one: ${fix}`);
  note.id = "fonts";
  document.querySelector("main").prepend(note);
}

setTheme(dark.matches ? "dark" : "light");
drawAll().then(() => {
  root.dataset.ready = "yes";
});
