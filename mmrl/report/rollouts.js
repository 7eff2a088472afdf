// One rollout at a time. What a model wrote goes into the page as text nodes, never as markup.
const FOLD = 2000; // characters from which a text is folded
const view = { chosen: [], place: 0, token: 0 };
const by = (id) => document.getElementById(id);
const words = (name) => name.replaceAll("_", " ");

// Characters that cannot be seen, or that turn text around, stand in a box of their own with their number.
function write(node, text) {
  let start = 0;
  for (const match of text.matchAll(/[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu)) {
    if ("\n\t\u200c\u200d".includes(match[0])) continue;
    if (match.index > start) node.append(text.slice(start, match.index));
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    node.append(make("span", { class: "control", "data-code": `U+${code}` }, match[0]));
    start = match.index + match[0].length;
  }
  if (start < text.length) node.append(text.slice(start));
}

function fill(node, text) {
  node.replaceChildren();
  write(node, text);
  fold(node, text.length);
}

function fold(node, length) {
  if (node.nextElementSibling?.matches(".unfold")) node.nextElementSibling.remove();
  node.classList.toggle("folded", length > FOLD);
  if (length <= FOLD) return;
  const button = make("button", { type: "button", class: "unfold", "aria-expanded": "false" }, `Show all ${length.toLocaleString("en")} characters`);
  button.onclick = () => {
    const folded = node.classList.toggle("folded");
    button.setAttribute("aria-expanded", !folded);
    button.textContent = folded ? `Show all ${length.toLocaleString("en")} characters` : "Show less";
  };
  node.after(button);
}

// The value that has the full colour: nearly the largest of all rollouts, the same for each of them.
function fullColour(name) {
  const all = report.rollouts.flatMap((one) => one[name] ?? []).filter((value) => value !== null).sort((a, b) => a - b);
  return Math.max(all[Math.floor(0.98 * (all.length - 1))] ?? 0, 1e-3);
}
const full = {};
const strength = (value, name) => Math.sqrt(Math.min(1, Math.max(0, value ?? 0) / (full[name] ??= fullColour(name))));

function shade(node, value, name) {
  const share = strength(value, name);
  node.style.setProperty("--p", share.toFixed(3));
  node.style.setProperty("--thick", Math.round(4 * share));
}

function showTokens(one) {
  const name = by("by-value").value, values = one[name];
  const place = by("tokens");
  place.replaceChildren(...one.pieces.map((piece, k) => {
    const token = make("span", { class: piece ? "token" : "token empty", "data-token": k });
    write(token, piece);
    if (values) {
      shade(token, values[k], name);
      token.title = `${number(values[k], false)} nats`;
    }
    return token;
  }));
  fold(place, one.pieces.reduce((sum, piece) => sum + piece.length, 0));
  const scale = by("scale");
  scale.replaceChildren();
  for (const part of values ? [0, 0.25, 0.5, 0.75, 1] : []) {
    const value = part * part * (full[name] ??= fullColour(name));
    const box = make("span", { class: "token" }, `${number(value, false)}${part === 1 ? " or more" : ""}`);
    shade(box, value, name);
    scale.append(box);
  }
  if (values) scale.append("nats a token");
  chooseToken(null);
}

function chooseToken(index) {
  const one = view.chosen[view.place], place = by("tokens");
  place.querySelector(".active")?.classList.remove("active");
  view.token = index;
  if (!one || index === null) {
    by("token").textContent = one?.exact ? "Point at a token, or move to it with the arrows." : one?.why ?? "";
    return;
  }
  place.children[index].classList.add("active");
  const told = ["exact", "k3", "entropy", "logprob"].filter((name) => one[name]).map((name) => `${name === "exact" ? "perception" : name} ${number(one[name][index], false)}`);
  const shown = by("token");
  shown.replaceChildren(`token ${index + 1} of ${one.pieces.length} “`);
  write(shown, one.pieces[index].slice(0, 60));
  shown.append(`” ${told.join(", ")}`);
}

function showPictures(one) {
  const place = by("pictures");
  place.replaceChildren();
  one.images.forEach((source, k) => {
    for (const [title, address] of [["what it saw", source], ["corrupted", one.corrupted[k]]]) {
      if (!address) continue;
      const image = make("img", { alt: `${title}${one.images.length > 1 ? `, image ${k + 1}` : ""}`, src: address });
      image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 200);
      place.append(make("figure", {}, make("figcaption", {}, image.alt), image));
    }
  });
  place.hidden = !one.images.length;
}

function showParts(one) {
  const parts = Object.entries({ reward: one.reward, ...one.parts }).filter(([, value]) => value !== null && value !== undefined);
  by("parts").replaceChildren(...parts.map(([name, value]) => make(
    "div", { class: "part" }, make("span", {}, words(name)), make("b", {}, number(value, false)),
    ...(value >= 0 && value <= 1 ? [make("meter", { min: 0, max: 1, value, "aria-label": words(name) })] : []))));
}

function show() {
  const one = view.chosen[view.place], article = by("rollout");
  by("place").textContent = one ? `${view.place + 1} of ${view.chosen.length}` : "none";
  article.hidden = !one;
  by("previous").disabled = by("next").disabled = view.chosen.length < 2;
  for (const [k, button] of [...by("strip").children].entries()) {
    if (k === view.place) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
  }
  if (!one) return;
  const strip = by("strip"), current = strip.children[view.place];
  strip.scrollLeft = current.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
  by("kind").textContent = words(one.kind);
  by("kind").className = one.kind === "right" ? "kind right" : "kind";
  by("name").replaceChildren();
  const counts = one.group ? ` · ${one.group[0]} of ${one.group[1]} samples right` : "";
  write(by("name"), `${report.runs.length > 1 ? `${report.runs[one.run].name} · ` : ""}${one.id}${counts}`);
  fill(by("problem"), one.problem);
  fill(by("answer"), one.answer);
  showPictures(one);
  showTokens(one);
  showParts(one);
  by("earlier").hidden = !one.before;
  if (one.before) {
    const group = one.before.group;
    by("earlier-title").textContent = `Before reinforcement learning: ${words(one.before.kind)} (${group[0]} of ${group[1]} samples right)`;
    fill(by("before"), one.before.response);
  }
}

function go(by) {
  if (!view.chosen.length) return;
  view.place = (view.place + by + view.chosen.length) % view.chosen.length;
  show();
}

function strip() {
  by("strip").replaceChildren(...view.chosen.map((one, k) => {
    const right = one.kind === "right";
    const button = make("button", { type: "button", tabindex: "-1", "aria-label": `Rollout ${k + 1}: ${words(one.kind)}` });
    button.append(one.images[0] ? make("img", { alt: "", src: one.images[0] }) : String(k + 1));
    button.append(make("span", { class: right ? "mark right" : "mark", "aria-hidden": "true" }, right ? "✓" : "✗"));
    button.onclick = () => { view.place = k; show(); };
    return button;
  }));
}

function filter() {
  const run = by("by-run").value, kind = by("by-kind").value, source = by("by-source").value;
  const agrees = (one) => (run === "" || String(one.run) === run) && (source === "" || one.source === source)
    && (kind === "" || one.kind === kind || (kind === "not right" && one.kind !== "right"));
  view.chosen = report.rollouts.filter(agrees);
  view.place = 0;
  strip();
  show();
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, label]) => make("option", { value }, label)));
  select.onchange = filter;
  select.closest("label").hidden = pairs.length < 3;
}

function startRollouts() {
  if (!report.rollouts.length) return;
  const all = report.rollouts, count = (test) => all.filter(test).length;
  const kinds = [...new Set(all.map((one) => one.kind))].sort();
  const wrong = kinds.filter((kind) => kind !== "right").length > 1 ? [["not right", `not right (${count((one) => one.kind !== "right")})`]] : [];
  const sources = [...new Set(all.map((one) => one.source))].sort();
  options(by("by-run"), [["", "all"], ...report.runs.map((run, k) => [String(k), run.name])]);
  options(by("by-kind"), [["", `all (${all.length})`], ...wrong, ...kinds.map((kind) => [kind, `${words(kind)} (${count((one) => one.kind === kind)})`])]);
  options(by("by-source"), [["", "all"], ...sources.map((source) => [source, source])]);
  by("by-value").onchange = () => { if (view.chosen.length) showTokens(view.chosen[view.place]); };
  by("by-value").closest("label").hidden = !all.some((one) => one.exact);
  by("previous").onclick = () => go(-1);
  by("next").onclick = () => go(1);
  const tokens = by("tokens");
  tokens.onpointerover = (event) => { const token = event.target.closest("[data-token]"); if (token) chooseToken(Number(token.dataset.token)); };
  tokens.onclick = tokens.onpointerover;
  tokens.onkeydown = (event) => {
    const last = tokens.children.length - 1, now = view.token ?? -1;
    const to = { ArrowLeft: Math.max(0, now - 1), ArrowRight: Math.min(last, now + 1), Home: 0, End: last }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    chooseToken(to);
  };
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select, input, .plot")) return;
    const here = event.target.closest("#rollouts") !== null;
    const step = { j: 1, k: -1, ArrowRight: here ? 1 : 0, ArrowLeft: here ? -1 : 0 }[event.key];
    if (!step) return;
    event.preventDefault();
    go(step);
    const box = by("rollouts").getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight) by("rollouts").scrollIntoView();
  });
  filter();
}
