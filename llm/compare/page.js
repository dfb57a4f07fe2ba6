// Draws the figures that Python made; the table sorts, filters, and shows marked choices alone in every figure.
"use strict";

const $ = (selector) => [...document.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);
const figures = JSON.parse(byId("figures").textContent);
const CONFIG = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "", responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "sendChartToCloud"] };

for (const [id, { data, layout }] of Object.entries(figures)) {
  byId(id).replaceChildren();
  Plotly.newPlot(id, data, layout, CONFIG);
}

// Curves: one metric at a time, against tokens or FLOPs.
if (figures.curves) {
  const views = figures.curves.layout.meta.views;
  const select = byId("view"), log = byId("log"), drawn = byId("curves");
  select.append(...views.map(({ x, y }, i) => new Option(`${y} against ${x}`, i)));
  const show = () => {
    const { view, x, y, range } = views[select.value];
    Plotly.update(drawn, { visible: drawn.data.map((trace) => trace.meta.view === view) }, {
      "xaxis.title.text": x, "yaxis.title.text": y, "yaxis.range": [...range], "xaxis.type": log.checked ? "log" : "linear",
      "xaxis.autorange": true });
  };
  select.addEventListener("change", show);
  log.addEventListener("change", show);
}

// The table.
const body = byId("ranked").tBodies[0];
const marks = $("#ranked tbody input");

function follow() {
  const followed = new Set(marks.filter((mark) => mark.checked).map((mark) => Number(mark.value)));
  const opacity = (choice) => (!followed.size || followed.has(choice) ? 1 : 0.06);
  for (const id of Object.keys(figures)) {
    byId(id).data.forEach((trace, i) => {
      if (trace.customdata) Plotly.restyle(id, { "marker.opacity": [[...trace.customdata].map(opacity)] }, [i]);
    });
    const lines = byId(id).data.map((trace, i) => [trace.meta?.choice, i]).filter(([choice]) => choice !== undefined);
    if (lines.length) Plotly.restyle(id, { opacity: lines.map(([choice]) => opacity(choice)) }, lines.map(([, i]) => i));
  }
}
body.addEventListener("change", follow);

const value = (cell) => {
  const text = cell.dataset.value ?? cell.textContent;
  return text === "" || text === "-" || text === "nan" ? null : isFinite(text) ? Number(text) : text;
};
$("#ranked thead button").forEach((button, i) => button.addEventListener("click", () => {
  const sign = button.dataset.order === "up" ? -1 : 1;
  $("#ranked thead button").forEach((other) => delete other.dataset.order);
  button.dataset.order = sign > 0 ? "up" : "down";
  body.append(...[...body.rows].sort((one, other) => {
    const [a, b] = [one, other].map((row) => value(row.cells[i + 1]));
    if (a === null || b === null) return (a === null) - (b === null); // what was not measured stays last
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  }));
}));

byId("filter").addEventListener("input", ({ target }) => {
  const words = target.value.toLowerCase().split(/\s+/);
  for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
});

$(".copy").forEach((button) => button.addEventListener("click", () => {
  getSelection().selectAllChildren(button.previousElementSibling);
  navigator.clipboard?.writeText(button.previousElementSibling.textContent).catch(() => {});
  button.textContent = "Copied (or selected: Ctrl-C)";
}));

const root = document.documentElement;
const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
byId("theme").addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; });
