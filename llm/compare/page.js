// Draws the figures that Python made; the table sorts, filters, and shows marked choices alone in every figure.
"use strict";

const byId = (id) => document.getElementById(id);
const figures = JSON.parse(byId("figures").textContent);
const CONFIG = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "", responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "sendChartToCloud"] };

const dark = matchMedia("(prefers-color-scheme: dark)");
const colours = () => {
  const [text, grid] = dark.matches ? ["#d7dde5", "#39424e"] : ["#1c2430", "#d8dee6"];
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": text,
    "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": grid, "modebar.activecolor": text,
    ...Object.fromEntries(["xaxis", "yaxis"].flatMap((axis) =>
      ["gridcolor", "zerolinecolor", "linecolor"].map((of) => [`${axis}.${of}`, grid]))) };
};
for (const [id, { data, layout }] of Object.entries(figures)) {
  byId(id).replaceChildren();
  Plotly.newPlot(id, data, layout, CONFIG);
  Plotly.relayout(id, colours());
}
dark.onchange = () => Object.keys(figures).forEach((id) => Plotly.relayout(id, colours()));

// Curves: one metric at a time, against tokens or FLOPs.
if (figures.curves) {
  const views = figures.curves.layout.meta.views;
  const select = byId("view"), log = byId("log"), drawn = byId("curves");
  select.append(...views.map(({ x, y }, i) => new Option(`${y} against ${x}`, i)));
  select.onchange = log.onchange = () => {
    const { view, x, y, range } = views[select.value];
    Plotly.update(drawn, { visible: drawn.data.map((trace) => trace.meta.view === view) }, {
      "xaxis.title.text": x, "yaxis.title.text": y, "yaxis.range": [...range], "xaxis.autorange": true,
      "xaxis.type": log.checked ? "log" : "linear" });
  };
}

// The table of choices, which a report has not.
if (byId("ranked")) {
  const body = byId("ranked").tBodies[0];

  body.onchange = () => {
    const marked = new Set([...body.querySelectorAll(":checked")].map((mark) => Number(mark.value)));
    const opacity = (choice) => (!marked.size || marked.has(choice) ? 1 : 0.06);
    for (const id of Object.keys(figures)) {
      const traces = byId(id).data;
      const dots = traces[0].customdata; // the choice of each
      if (dots) Plotly.restyle(id, { "marker.opacity": [[...dots].map(opacity)] }, [0]);
      else Plotly.restyle(id, { opacity: traces.map((trace) => opacity(trace.meta.choice)) });
    }
  };

  const value = (cell) => {
    const text = cell.dataset.value ?? cell.textContent;
    return text === "" || text === "-" || text === "nan" ? null : isFinite(text) ? Number(text) : text;
  };
  const heads = [...document.querySelectorAll("#ranked thead button")];
  heads.forEach((head, i) => head.onclick = () => {
    const sign = head.dataset.order === "up" ? -1 : 1;
    heads.forEach((other) => delete other.dataset.order);
    head.dataset.order = sign > 0 ? "up" : "down";
    body.append(...[...body.rows].sort((one, other) => {
      const [a, b] = [one, other].map((row) => value(row.cells[i + 1]));
      if (a === null || b === null) return (a === null) - (b === null); // what was not measured stays last
      return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    }));
  });

  byId("filter").oninput = ({ target }) => {
    const words = target.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  };
}
