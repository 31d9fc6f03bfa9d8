"use strict";
const say = (value) => Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

const { renew, written } = document.body.dataset;
if (renew) {
  const age = document.querySelector("[data-age]");
  setInterval(() => {
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - written));
    if (age) age.textContent = seconds < 90 ? `written ${seconds} s ago` : `no news for ${Math.round(seconds / 60)} min`;
    const busy = document.hidden || document.querySelector("details[open], .plot:hover, .plot:focus");
    if (!busy && performance.now() > 1000 * renew) location.reload();
  }, 1000);
}

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot"), cursor = figure.querySelector(".cursor"), readout = figure.querySelector(".readout");
  if (!chart.series.length) continue;
  const [low, high] = chart.x;
  const guide = chart.series.reduce((a, b) => (b.x.length > a.x.length ? b : a)).x;
  let at = guide.length - 1;

  const row = (name, value, colour) => {
    const line = document.createElement("div");
    if (colour !== null) {
      const swatch = document.createElement("i");
      swatch.className = "line c" + colour;
      line.append(swatch);
    }
    const text = document.createElement("span"), figureText = document.createElement("b");
    text.textContent = name;
    figureText.textContent = value;
    line.append(text, figureText);
    return line;
  };
  const show = () => {
    const x = guide[at], share = (x - low) / (high - low);
    cursor.hidden = readout.hidden = false;
    cursor.style.left = 100 * share + "%";
    readout.replaceChildren(row(chart.unit, say(x), null), ...chart.series.map((s) => row(s.name, say(s.y[nearest(s.x, x)]), s.colour)));
    readout.style.left = share < 0.5 ? `calc(${100 * share}% + 12px)` : "";
    readout.style.right = share < 0.5 ? "" : `calc(${100 * (1 - share)}% + 12px)`;
  };
  const hide = () => { cursor.hidden = readout.hidden = true; };

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    at = nearest(guide, low + (event.clientX - box.left) / box.width * (high - low));
    show();
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    at = Math.max(0, Math.min(guide.length - 1, at + move));
    show();
  });
}
