// What page.py wrote down -> figures, and the table that is their legend: sort, search, follow.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#b45fa0", "#c98a00", "#3c9bd6", "#7a68d8", "#8c6d31", "#c23b22", "#6b7684"];
const RAMP = ["#2563eb", "#0d9aa8", "#5aa02c", "#d99a00", "#cf4a5d"]; // from the best to the worst
const CONFIG = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "", responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"] };
const figures = new Map(); // element -> {owners: choice of each trace, or null; points: whether owners are of points}
const followed = new Set();

// Plotly takes text for HTML of a kind: what a run is called must stay what it is.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 40) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const number = (text) => (text !== "" && isFinite(Number(text)) ? Number(text) : null);
const round = (value) => (value === null ? "-" : Number(value.toPrecision(5)).toString());

function mixed(from, to, share) {
  const part = (colour, i) => parseInt(colour.slice(1 + 2 * i, 3 + 2 * i), 16);
  return "rgb(" + [0, 1, 2].map((i) => Math.round(part(from, i) + (part(to, i) - part(from, i)) * share)).join(",") + ")";
}

function colour(choice) {
  if (data.choices.length <= PALETTE.length) return PALETTE[choice];
  const place = (choice / (data.choices.length - 1)) * (RAMP.length - 1);
  const i = Math.min(Math.floor(place), RAMP.length - 2);
  return mixed(RAMP[i], RAMP[i + 1], place - i);
}

function layout(extra) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = extra;
  return {
    paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"),
    font: { color: css("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
    margin: { l: 60, r: 16, t: 28, b: 52 }, hovermode: "closest", showlegend: false,
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") }, align: "left" },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

function draw(id, traces, extra, owners, points = false) {
  const element = document.getElementById(id);
  if (!element) return;
  if (!figures.has(element)) element.replaceChildren();
  figures.set(element, { owners, points });
  Plotly.react(element, traces, layout(extra), CONFIG);
  if (!element.dataset.listens) {
    element.dataset.listens = "yes";
    element.on("plotly_click", (event) => {
      const { curveNumber, pointNumber } = event.points[0];
      const { owners: of, points: each } = figures.get(element);
      const choice = each ? (curveNumber === 0 ? of[pointNumber] : null) : of[curveNumber];
      if (choice !== null && choice !== undefined) toggle(choice);
    });
  }
}

function logged(values) {
  const positive = values.filter((value) => value !== null);
  return positive.length > 0 && Math.min(...positive) > 0 && Math.max(...positive) / Math.min(...positive) >= 20;
}

function described(choice) {
  const lines = data.keys.slice(0, 12).map((key, i) => `${plain(key)}=${plain(short(choice.values[i]))}`);
  const half = choice.half ? ` ± ${round(choice.half)} (${choice.n} seeds)` : "";
  const result = data.metric ? [`${plain(data.metric)}: ${round(choice.mean)}${half}`] : [];
  return [`<b>${plain(short(choice.name, 60))}</b>`, ...lines, ...result, choice.done ? "" : plain(choice.state)]
    .filter(Boolean).join("<br>");
}

function drawCurves() {
  const select = document.getElementById("curve");
  if (!select) return;
  const name = select.value;
  const title = select.selectedOptions[0].textContent;
  const isLog = document.getElementById("log").checked;
  const shown = data.curves.filter((curve) => curve.series[name]).reverse(); // the best on top
  for (const [id, label] of [["tokens", "tokens trained on"], ["compute", "FLOPs (forward and backward)"]]) {
    const of = id === "compute" ? shown.filter((curve) => curve.flops) : shown;
    const traces = of.map((curve) => {
      const [tokens, values] = curve.series[name];
      return {
        x: id === "compute" ? tokens.map((n) => n * curve.flops) : tokens, y: values,
        type: "scatter", mode: values.length < 12 ? "lines+markers" : "lines",
        line: { color: colour(curve.choice), width: 1.6, dash: curve.done ? "solid" : "dot" }, marker: { size: 5 },
        hovertemplate: `<b>${plain(short(curve.run, 60))}</b>, rank ${curve.choice + 1}<br>%{x:.4~s} ` +
          `${id === "compute" ? "FLOPs" : "tokens"}: %{y:.5~g}<extra></extra>`,
      };
    });
    const axis = isLog ? { type: "log", dtick: 1 } : { rangemode: "tozero", exponentformat: id === "compute" ? "power" : "SI" };
    draw(id, traces, { xaxis: { title: { text: label }, ...axis }, yaxis: { title: { text: title } } },
      of.map((curve) => curve.choice));
  }
}

function drawEffects() {
  data.effects.forEach((effect, place) => {
    const column = data.keys.indexOf(effect.key);
    const of = data.choices.map((choice, i) => i).filter((i) => data.choices[i].done && data.choices[i].mean !== null);
    const texts = of.map((i) => data.choices[i].values[column]);
    const isNumeric = texts.every((text) => number(text) !== null);
    const dots = {
      x: isNumeric ? texts.map(Number) : texts.map((text) => short(text)), y: of.map((i) => data.choices[i].mean),
      type: "scatter", mode: "markers", marker: { color: of.map(colour), size: 8 },
      text: of.map((i) => described(data.choices[i])), hovertemplate: "%{text}<extra></extra>",
    };
    const axis = { title: { text: plain(effect.key) }, type: isNumeric ? "linear" : "category" };
    if (isNumeric && logged(dots.x)) axis.type = "log";
    if (isNumeric && !effect.binned) Object.assign(axis, { tickvals: dots.x, ticktext: texts });
    if (!isNumeric) Object.assign(axis, { categoryorder: "array", categoryarray: effect.levels.map((l) => short(l.value)) });
    draw(`effect-${place}`, [dots, means(effect, isNumeric)],
      { xaxis: axis, yaxis: { title: { text: plain(data.label) } } }, of, true);
  });
}

function means(effect, isNumeric) {
  const line = { color: css("--ink"), width: 2 };
  const hover = (level) => `${plain(short(level.value))}: mean ${round(level.mean)}` +
    (level.half ? ` ± ${round(level.half)}` : "") + ` of ${level.n}`;
  if (effect.binned) {
    const ends = effect.levels.flatMap((level) => [...level.value.split(" … ").map(Number), null]);
    return {
      x: ends, y: effect.levels.flatMap((level) => [level.mean, level.mean, null]), type: "scatter", mode: "lines", line,
      text: effect.levels.flatMap((level) => [hover(level), hover(level), ""]), hovertemplate: "%{text}<extra></extra>",
    };
  }
  return {
    x: effect.levels.map((level) => (isNumeric ? Number(level.value) : short(level.value))),
    y: effect.levels.map((level) => level.mean), type: "scatter", mode: isNumeric ? "lines+markers" : "markers", line,
    marker: { color: css("--ink"), symbol: "diamond", size: 10 },
    error_y: { type: "data", array: effect.levels.map((level) => level.half ?? 0), color: css("--ink"), thickness: 1.5 },
    text: effect.levels.map(hover), hovertemplate: "%{text}<extra></extra>",
  };
}

function drawSizes() {
  for (const size of data.sizes) {
    const of = data.choices.map((choice, i) => i).filter((i) => size.values[i] !== null && data.choices[i].mean !== null);
    const x = of.map((i) => size.values[i]);
    const dots = {
      x, y: of.map((i) => data.choices[i].mean), type: "scatter", mode: "markers",
      marker: { color: of.map(colour), size: 9, symbol: of.map((i) => (data.choices[i].done ? "circle" : "circle-open")) },
      error_y: { type: "data", array: of.map((i) => data.choices[i].half ?? 0), color: css("--faint"), thickness: 1, width: 2 },
      text: of.map((i) => described(data.choices[i])), hovertemplate: `%{x:,} ${size.name}<br>%{text}<extra></extra>`,
    };
    const unit = size.name === "vocabulary" ? "vocabulary (tokens)" : size.name;
    const axis = { title: { text: unit }, type: logged(x) ? "log" : "linear", exponentformat: "SI" };
    const sizes = [...new Set(x)];
    if (sizes.length <= 6) Object.assign(axis, { tickvals: sizes, ticktext: sizes.map((each) => each.toLocaleString("en")) });
    draw(`size-${size.name}`, [dots], { xaxis: axis, yaxis: { title: { text: plain(data.label) } } }, of, true);
  }
}

// An axis of the parallel coordinates: where a value stands, from 0 to 1, and what is written beside it.
function scale(texts, isNumeric) {
  if (isNumeric) {
    const values = [...new Set(texts.map(Number))].sort((a, b) => a - b);
    const size = logged(values) ? Math.log : (value) => value;
    const [low, high] = [size(values[0]), size(values[values.length - 1])];
    const at = (text) => (high > low ? (size(Number(text)) - low) / (high - low) : 0.5);
    const marked = values.length <= 6 ? values : [0, 1, 2, 3, 4].map((i) => values[Math.round((i / 4) * (values.length - 1))]);
    return { at, ticks: marked.map((value) => [at(value), Number(value.toPrecision(4)).toString()]) };
  }
  const words = [...new Set(texts)].sort();
  const at = (text) => (words.length > 1 ? words.indexOf(text) / (words.length - 1) : 0.5);
  const step = Math.ceil(words.length / 12);
  return { at, ticks: words.filter((_, i) => i % step === 0).map((word) => [at(word), plain(short(word, 14))]) };
}

function drawParallel() {
  if (!document.getElementById("parallel")) return;
  const keys = data.keys.map((key, i) => [key, i]).slice(0, 9);
  const of = data.choices.map((choice, i) => i).filter((i) => data.choices[i].mean !== null).reverse();
  const columns = keys.map(([, i]) => of.map((n) => data.choices[n].values[i]));
  const scales = columns.map((texts) => scale(texts, texts.every((text) => number(text) !== null)));
  const results = of.map((n) => data.choices[n].mean);
  const result = scale(results, true);
  const flip = data.highest ? (share) => share : (share) => 1 - share;
  const traces = of.map((n, place) => ({
    x: [...keys.keys(), keys.length],
    y: [...scales.map((each, i) => each.at(columns[i][place])), flip(result.at(results[place]))],
    type: "scatter", mode: "lines", line: { color: colour(n), width: 1.6 },
    text: Array(keys.length + 1).fill(described(data.choices[n])), hovertemplate: "%{text}<extra></extra>",
  }));
  const ticks = [...scales.map((each) => each.ticks), result.ticks.map(([share, text]) => [flip(share), text])];
  const labels = ticks.flatMap((each, i) => each.map(([y, text]) => ({
    x: i, y, text, showarrow: false, xanchor: i === keys.length ? "left" : "right", xshift: i === keys.length ? 5 : -5,
    font: { size: 11, color: css("--faint") }, bgcolor: css("--paper"), opacity: 0.9,
  })));
  const isNarrow = document.body.clientWidth < 640;
  draw("parallel", traces, {
    annotations: labels, margin: { l: 74, r: 60, t: 28, b: isNarrow ? 110 : 60 },
    shapes: ticks.map((_, i) => ({ type: "line", x0: i, x1: i, y0: 0, y1: 1, line: { color: css("--faint"), width: 1 }, layer: "below" })),
    xaxis: { tickvals: ticks.map((_, i) => i), ticktext: [...keys.map(([key]) => plain(key)), plain(data.metric)]
      .map((key) => key.replace(/[./](?=[^./]*$)/, (sign) => sign + "<br>")),
      showgrid: false, zeroline: false, range: [-0.25, keys.length + 0.25], fixedrange: true, tickangle: isNarrow ? -90 : 0 },
    yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true },
  }, of);
}

function drawAll() {
  drawCurves();
  drawEffects();
  drawSizes();
  drawParallel();
  follow();
}

// Following: what is not followed fades, in every figure and in the table.
function toggle(choice) {
  if (!followed.delete(choice)) followed.add(choice);
  follow();
}

function follow() {
  const opacity = (choice) => (followed.size === 0 || followed.has(choice) ? 1 : 0.06);
  for (const [element, { owners, points }] of figures) {
    if (!owners.length) continue;
    if (points) Plotly.restyle(element, { "marker.opacity": [owners.map(opacity)] }, [0]);
    else Plotly.restyle(element, { opacity: owners.map(opacity) });
  }
  for (const row of rows()) row.classList.toggle("followed", followed.has(Number(row.dataset.choice)));
  document.getElementById("following").textContent = followed.size ? `${followed.size} followed` : "";
}

const body = document.querySelector("#ranked tbody");
const rows = () => [...body.rows];

function sort(button, index) {
  const up = button.dataset.order !== "up";
  for (const other of document.querySelectorAll("#ranked thead button")) delete other.dataset.order;
  button.dataset.order = up ? "up" : "down";
  const value = (row) => {
    const cell = row.cells[index];
    return cell.dataset.value !== undefined ? Number(cell.dataset.value) : number(cell.textContent) ?? cell.textContent;
  };
  const isLast = (each) => each === "-" || each === "nan" || each === "";
  const order = (one, other) => {
    const [a, b] = [value(one), value(other)];
    if (isLast(a) || isLast(b)) return isLast(a) - isLast(b);
    const found = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return up ? found : -found;
  };
  body.append(...rows().sort(order));
}

function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  followed.clear();
  for (const row of rows()) {
    const isFound = words.every((word) => row.textContent.toLowerCase().includes(word));
    row.classList.toggle("hidden", !isFound);
    if (isFound && words.length) followed.add(Number(row.dataset.choice));
  }
  follow();
}

function listen() {
  document.querySelectorAll("#ranked thead button").forEach((button, i) => button.addEventListener("click", () => sort(button, i)));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !String(getSelection())) toggle(Number(row.dataset.choice));
  });
  body.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("tr")) toggle(Number(event.target.dataset.choice));
  });
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => search(filter.value));
  document.getElementById("all").addEventListener("click", () => { filter.value = ""; search(""); });
  for (const id of ["curve", "log"]) document.getElementById(id)?.addEventListener("change", () => { drawCurves(); follow(); });
  document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => copy(button)));
  let before = null;
  addEventListener("beforeprint", () => { before = root.dataset.theme; theme("light"); });
  addEventListener("afterprint", () => theme(before ?? "light"));
}

function copy(button) {
  const range = document.createRange();
  range.selectNodeContents(button.previousElementSibling);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  navigator.clipboard?.writeText(button.previousElementSibling.textContent).catch(() => {});
  button.textContent = "Copied (or selected: Ctrl-C)";
}

function theme(name) {
  root.dataset.theme = name;
  drawAll();
}

function key() {
  for (const swatch of body.querySelectorAll(".swatch")) swatch.style.background = colour(Number(swatch.closest("tr").dataset.choice));
  for (const element of document.querySelectorAll(".key")) {
    if (data.choices.length > PALETTE.length) {
      const ramp = Object.assign(document.createElement("span"), { className: "ramp" });
      ramp.style.background = `linear-gradient(to right, ${RAMP.join(",")})`;
      element.append("best", ramp, `worst of ${data.choices.length} (click a line, or its row in the table)`);
      continue;
    }
    data.choices.forEach((choice, i) => {
      const name = document.createElement("span");
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      swatch.style.background = colour(i);
      name.append(swatch, `${i + 1} ${short(settings(choice) || choice.name, 70)}`);
      element.append(name);
    });
  }
}

const settings = (choice) => data.keys.slice(0, 4).map((name, i) => `${name.split(".").pop()}=${choice.values[i]}`).join(" ");

listen();
key();
theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => theme(event.matches ? "dark" : "light"));
