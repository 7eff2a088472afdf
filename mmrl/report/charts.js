// Pictures of metrics: lines over steps, and seconds of each phase as stacked columns. Data is `report`.
const SVG = "http://www.w3.org/2000/svg";
const EDGE = { left: 46, right: 10, top: 8, bottom: 22 };
const hiddenRuns = new Set();
const redraws = [];

function make(name, attributes = {}, ...children) {
  const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function number(value, percent) {
  if (value === null || value === undefined) return "–";
  if (percent) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  if (size >= 1e7 || (size && size < 1e-3)) return power(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

// A number as people write one that is very small or large: 1.5×10⁻⁶.
function power(value) {
  const [digits, exponent] = value.toExponential(2).split("e");
  return `${Number(digits)}×10${[...exponent.replace("+", "")].map((one) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[one] ?? "⁻").join("")}`;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step + 0); // never -0
  return found;
}

function logTicks(low, high) {
  const found = [];
  const from = Math.ceil(Math.log10(low) - 1e-9), to = Math.floor(Math.log10(high) + 1e-9);
  const every = Math.max(1, Math.ceil((to - from) / 5));
  for (let power = from; power <= to; power += every) found.push(10 ** power);
  return found.length > 1 ? found : [low, high];
}

function span(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

// Places of the axes: functions from values to pixels, and the grid drawn into `svg`.
function axes(svg, width, height, x, y, { percent, log, bottomZero }) {
  let [low, high] = y;
  if (!log) {
    if (low >= 0 && (bottomZero || low < 0.6 * high)) low = 0;
    // What differs by rounding only is drawn as the level line that it is.
    const least = 1e-3 * Math.max(Math.abs(low), Math.abs(high));
    if (high === 0 && low === 0) high = 1;
    else if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
    else high += (high - low) * 0.04;
  } else if (low === high) [low, high] = [low / 2, high * 2];
  const lines = log ? logTicks(low, high) : ticks(low, high, 4);
  const step = (lines[1] - lines[0]) * (percent ? 100 : 1);
  let digits = 0;
  while (digits < 6 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits++;
  const labels = lines.map((value) => {
    if (log || digits > 5 || Math.abs(value) >= 1e7) return number(value, percent);
    const plain = (percent ? 100 * value : value).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return percent ? `${plain} %` : plain;
  });
  const texts = labels.map((label) => make("svg:text", { "text-anchor": "end" }, label));
  svg.append(...texts);
  const left = Math.max(EDGE.left, Math.ceil(Math.max(...texts.map((text) => text.getComputedTextLength()))) + 8);
  const inner = width - left - EDGE.right, tall = height - EDGE.top - EDGE.bottom;
  const of = log ? Math.log10 : (value) => value;
  const right = x[1] > x[0] ? x[1] : x[0] + 1;
  const toX = (step) => left + (inner * (step - x[0])) / (right - x[0]);
  const toY = (value) => EDGE.top + tall * (1 - (of(value) - of(low)) / (of(high) - of(low)));
  lines.forEach((value, k) => {
    const at = toY(value);
    svg.append(make("svg:line", { class: "grid", x1: left, x2: width - EDGE.right, y1: at, y2: at }));
    texts[k].setAttribute("x", left - 6);
    texts[k].setAttribute("y", at + 4);
  });
  for (const step of ticks(x[0], right, Math.max(2, Math.floor(inner / 70)))) {
    if (!Number.isInteger(step)) continue;
    const anchor = toX(step) > width - 24 ? "end" : "middle";
    svg.append(make("svg:text", { x: toX(step), y: height - 6, "text-anchor": anchor }, number(step, false)));
  }
  return { toX, toY, toStep: (at) => x[0] + ((at - left) * (right - x[0])) / inner };
}

function nearest(steps, wanted) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= wanted) low = middle; else high = middle;
  }
  return Math.abs(steps[high] - wanted) < Math.abs(steps[low] - wanted) ? high : low;
}

function pathOf(line, toX, toY, log) {
  let path = "", pen = false;
  line.steps.forEach((step, k) => {
    const value = line.values[k];
    if (value === null || (log && value <= 0)) { pen = false; return; }
    path += `${pen ? "L" : "M"}${toX(step).toFixed(1)} ${toY(value).toFixed(1)}`;
    pen = true;
  });
  return path;
}

// The frame that all pictures share: title, drawing with a cursor, and a legend that tells values there.
// `draw(svg, width, height, options)` returns {toX, toY, toStep}; `tell(step)` what each entry says there.
function frame({ title, note, entries, stops, draw, tell, canLog, marks }) {
  const svg = make("svg:svg", { class: "plot", tabindex: "0", role: "img" });
  const legend = make("div", { class: "legend" }), at = make("p", { class: "at" });
  const caption = make("figcaption", {}, make("h3", {}, title));
  const figure = make("figure", { "data-panel": title }, caption, svg, at, legend);
  const state = { log: false, cursor: null, off: new Set(), places: null, width: 0, height: 0 };
  if (canLog) {
    const button = make("button", { type: "button", class: "log", "aria-pressed": "false", "aria-label": `${title}: logarithmic axis` }, "log");
    button.onclick = () => { state.log = !state.log; button.setAttribute("aria-pressed", state.log); redraw(); };
    caption.append(button);
  }
  if (note) caption.append(make("p", { class: "faint" }, note));
  const shows = (k) => !state.off.has(k) && !hiddenRuns.has(entries[k].run);
  const values = entries.map((entry, k) => {
    const sample = make("svg:svg", { width: 22, height: 10, "aria-hidden": "true" }, marks(entry));
    const value = make("span", { class: "value" });
    const button = make("button", { type: "button", "aria-pressed": "true" }, sample, make("span", { class: "label" }, entry.label), value);
    button.onclick = () => { if (!state.off.delete(k)) state.off.add(k); redraw(); };
    const emphasise = (only) => () => svg.querySelectorAll("[data-entry]").forEach((one) => {
      one.classList.toggle("weak", only && one.dataset.entry !== String(k));
      one.classList.toggle("strong", only && one.dataset.entry === String(k));
    });
    button.onpointerenter = button.onfocus = emphasise(true);
    button.onpointerleave = button.onblur = emphasise(false);
    legend.append(button);
    return { button, value };
  });
  function point() {
    svg.querySelectorAll(".cursor, .at-cursor").forEach((one) => one.remove());
    const told = tell(state.cursor, shows);
    values.forEach(({ value }, k) => { value.textContent = told[k] ? told[k].text : ""; });
    at.textContent = state.cursor === null ? "last value of each" : `step ${state.cursor.toLocaleString("en")}`;
    const { toX, toY } = state.places;
    if (state.cursor === null) return;
    const x = toX(state.cursor);
    svg.append(make("svg:line", { class: "cursor", x1: x, x2: x, y1: EDGE.top, y2: state.height - EDGE.bottom }));
    told.forEach((one, k) => {
      if (!one || one.value === null || one.value === undefined || one.step === undefined || (state.log && one.value <= 0)) return;
      svg.append(make("svg:circle", { class: `dot at-cursor c${entries[k].colour}`, r: 4, cx: toX(one.step), cy: toY(one.value) }));
    });
  }
  function measure() {
    state.width = svg.clientWidth || 380;
    state.height = svg.clientHeight || 200;
  }
  function redraw() {
    svg.setAttribute("viewBox", `0 0 ${state.width} ${state.height}`);
    svg.replaceChildren();
    state.places = draw(svg, state.width, state.height, { log: state.log, shows });
    values.forEach(({ button }, k) => {
      button.setAttribute("aria-pressed", !state.off.has(k));
      button.hidden = hiddenRuns.has(entries[k].run);
    });
    svg.setAttribute("aria-label", `${title} over steps. Left and right arrows read values. Last: ${spoken(null)}`);
    point();
  }
  const spoken = (step) => tell(step, shows).map((one, k) => (one && shows(k) ? `${entries[k].label} ${one.text}` : "")).filter(Boolean).join(", ");
  svg.onpointermove = (event) => {
    if (!stops.length) return;
    state.cursor = stops[nearest(stops, state.places.toStep(event.clientX - svg.getBoundingClientRect().left))];
    point();
  };
  svg.onpointerleave = () => { state.cursor = null; point(); };
  svg.onblur = svg.onpointerleave;
  svg.onkeydown = (event) => {
    const now = state.cursor === null ? stops.length : stops.indexOf(state.cursor), last = stops.length - 1;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") state.cursor = null;
    else if (to === undefined || !stops.length) return;
    else state.cursor = stops[Math.min(Math.max(to, 0), last)];
    event.preventDefault();
    point();
    if (state.cursor !== null) document.getElementById("status").textContent = `step ${state.cursor}: ${spoken(state.cursor)}`;
  };
  redraws.push({ measure, redraw });
  return figure;
}

function lineChart(panel) {
  const lines = panel.lines;
  const all = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const positive = lines.some((line) => line.values.some((value) => value > 0)) && lines.every((line) => line.values.every((value) => value === null || value >= 0));
  const marks = (line) => make("svg:path", { class: `line c${line.colour} d${line.dash}`, d: "M1 5H21" });
  const lastOf = (line) => { let k = line.values.length - 1; while (k > 0 && line.values[k] === null) k--; return k; };
  function tell(step) {
    return lines.map((line) => {
      const k = step === null ? lastOf(line) : nearest(line.steps, step);
      const missing = line.gaps ? ` (${line.gaps} not finite)` : "";
      return { step: line.steps[k], value: line.values[k], text: number(line.values[k], panel.percent) + missing };
    });
  }
  function draw(svg, width, height, { log, shows }) {
    const seen = lines.filter((_, k) => shows(k));
    const values = seen.flatMap((line) => line.values).filter((value) => value !== null && (!log || value > 0));
    const places = axes(svg, width, height, span(all), span(values), { percent: panel.percent, log });
    lines.forEach((line, k) => {
      if (!shows(k)) return;
      const path = pathOf(line, places.toX, places.toY, log);
      const drawn = make("svg:path", { class: `line c${line.colour} d${line.dash}`, d: path || "M0 0", "data-entry": k });
      if (path) svg.append(drawn);
      if (!line.sparse) return;
      line.steps.forEach((step, n) => {
        const value = line.values[n];
        if (value === null || (log && value <= 0)) return;
        svg.append(make("svg:circle", { class: `dot c${line.colour}`, r: 3.2, cx: places.toX(step), cy: places.toY(value), "data-entry": k }));
      });
    });
    return places;
  }
  return frame({ title: panel.title, note: panel.note, entries: lines, stops: all, draw, tell, canLog: positive && !panel.percent, marks });
}

function phaseChart(phases) {
  const { names, steps, values, top } = phases;
  const width1 = steps.length > 1 ? steps[1] - steps[0] : 1;
  const entries = names.map((label, k) => ({ label, run: phases.run, colour: k % 8 }));
  const marks = (entry) => make("svg:rect", { class: `bar-part c${entry.colour}`, x: 5, y: 0, width: 12, height: 10 });
  const total = (k, column) => values[k].reduce((sum, one) => sum + one, 0) / steps.length;
  function tell(step) {
    const column = step === null ? -1 : nearest(steps, step);
    return names.map((_, k) => {
      const value = column < 0 ? total(k) : values[k][column];
      return { value: null, text: `${number(value, false)} s` };
    });
  }
  function draw(svg, width, height, { shows }) {
    const places = axes(svg, width, height, [steps[0] - width1 / 2, steps[steps.length - 1] + width1 / 2], [0, top], { bottomZero: true });
    const wide = Math.max(1, places.toX(steps[0] + width1) - places.toX(steps[0]) - 1);
    steps.forEach((step, column) => {
      let from = 0;
      names.forEach((_, k) => {
        if (!shows(k)) return;
        const to = from + values[k][column];
        svg.append(make("svg:rect", { class: `bar-part c${k % 8}`, x: (places.toX(step) - wide / 2).toFixed(1), width: wide.toFixed(1), y: places.toY(to).toFixed(1), height: Math.max(0, places.toY(from) - places.toY(to)).toFixed(1), "data-entry": k }));
        from = to;
      });
    });
    return places;
  }
  return frame({ title: phases.title, note: phases.note, entries, stops: steps, draw, tell, canLog: false, marks });
}

// All are measured before any is drawn, so that the page is laid out once.
function drawAll() {
  redraws.forEach((one) => one.measure());
  redraws.forEach((one) => one.redraw());
}

function startCharts() {
  for (const place of document.querySelectorAll(".panels")) {
    const section = report.sections.find((one) => one.name === place.dataset.section);
    place.append(...section.panels.map(lineChart), ...section.phases.map(phaseChart));
    place.closest("details")?.addEventListener("toggle", drawAll);
  }
  const toggles = document.getElementById("runs");
  report.runs.forEach((run, k) => {
    if (report.runs.length === 1) return;
    const sample = make("svg:svg", { width: 22, height: 10, "aria-hidden": "true" }, make("svg:path", { class: `line c${run.colour}`, d: "M1 5H21" }));
    const button = make("button", { type: "button", "aria-pressed": "true" }, sample, run.name);
    button.onclick = () => {
      if (!hiddenRuns.delete(k)) hiddenRuns.add(k);
      button.setAttribute("aria-pressed", !hiddenRuns.has(k));
      drawAll();
    };
    toggles.append(button);
  });
  drawAll();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; requestAnimationFrame(drawAll); } });
}
