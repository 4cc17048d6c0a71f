"use strict";
// Shows the page's data. Whatever a user wrote goes into text nodes only, in elements of their own
// direction (bdi). State is in the fragment of the address: a link restores it.
(() => {
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const state = { card: 0, first: 0, second: -1, keep: 1, mode: "kept", token: -1 };
const MODES = ["kept", "order", "relevance"];
// Colours by place on a scale: viridis for turns, magma for relevance (both read without hue).
const VIRIDIS = [[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [68, 1, 84]];
const MAGMA = [[8, 6, 30], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
const ONLY = ["#3b82f6", "#ea6a12"];  // what the first or the second alone keeps

const card = () => data.cards[state.card];
const shown = () => [state.first, state.second].filter((i) => i >= 0).map((i) => card().runs[i]);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const plain = (value) => Number(value.toPrecision(3)).toString();

function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
const told = (text) => el("bdi", { dir: "auto" }, text === "" ? "(empty)" : text);
const mix = (ramp, share) => {
  const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1), low = Math.floor(at);
  const next = ramp[Math.min(low + 1, ramp.length - 1)];
  return ramp[low].map((value, i) => Math.round(value + (at - low) * (next[i] - value))).join(" ");
};

// --- What a budget keeps -------------------------------------------------------------------------

function kept(run, keep) {
  const own = run.answers.find((answer) => answer.keep === keep);
  return own && own.order ? own.order : run.order.slice(0, keep);
}
function total() { return card().energies.reduce((sum, value) => sum + value, 0); }
function left(run, keep) {  // the share of the energy that the kept tokens do not span
  const own = run.answers.find((answer) => answer.keep === keep && answer.order);
  if (own) return own.energy / total();
  return run.energy[Math.min(keep, run.energy.length - 1)] / run.energy[0];
}
// The budgets that can be shown, smallest first; null for every count.
function stops() {
  const fixed = shown().filter((run) => !run.nested);
  if (!fixed.length) return null;
  const counts = fixed[0].answers.map((answer) => answer.keep);
  const both = counts.filter((k) => fixed.every((run) => run.answers.some((a) => a.keep === k)));
  return both.sort((a, b) => a - b);
}
function place(keep) {  // where a budget lies on the axis, 0 to 1
  const list = stops();
  if (!list) return (keep - 1) / Math.max(1, card().tokens - 1);
  let at = 0;
  while (at < list.length - 1 && list[at + 1] <= keep) at++;
  const next = list[Math.min(at + 1, list.length - 1)];
  const part = next > list[at] ? (keep - list[at]) / (next - list[at]) : 0;
  return Math.min(Math.max(at + part, 0), list.length - 1) / Math.max(1, list.length - 1);
}
function nearest(keep) {
  const list = stops();
  if (!list) return Math.min(Math.max(Math.round(keep), 1), card().tokens);
  return list.reduce((a, b) => (Math.abs(b - keep) < Math.abs(a - keep) ? b : a));
}
function label(run, runs = card().runs) {
  const same = (name) => runs.every((other) => other[name] === run[name]);
  if (same("prompt")) return run.method;
  return same("method") ? run.prompt : `${run.prompt} · ${run.method}`;
}
const key = (which) => (shown().length > 1 ? [el("i", { class: `key only${which}` })] : []);

// --- State in the address ------------------------------------------------------------------------

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name, least, most, other) => {
    const value = Number.parseInt(given.get(name), 10);
    return value >= least && value <= most ? value : other;
  };
  state.card = number("card", 0, data.cards.length - 1, 0);
  const runs = card().runs.length;
  state.first = number("first", 0, runs - 1, 0);
  state.second = number("second", -1, runs - 1, runs > 1 && !given.has("first") ? 1 : -1);
  if (state.second === state.first) state.second = -1;
  const keeps = card().runs[state.first].answers.map((answer) => answer.keep);
  const usual = keeps.reduce((a, b) => {
    const far = (keep) => Math.abs(keep - (2 / 9) * card().tokens);
    return far(b) < far(a) ? b : a;
  });
  state.keep = nearest(number("keep", 1, card().tokens, usual));
  state.mode = MODES.includes(given.get("mode")) ? given.get("mode") : "kept";
  state.token = number("token", 0, card().tokens - 1, -1);
}
let waiting = 0;
function remember() {
  const hash = `#${new URLSearchParams(Object.entries(state))}`;
  $("link").setAttribute("href", hash);
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    try { history.replaceState(null, "", hash); } catch { /* a frame without an address */ }
  }, 120);
}

// --- The picture ---------------------------------------------------------------------------------

const images = new Map();
function imageOf(picture) {
  if (!images.has(picture.src)) {
    const image = new Image();
    image.onload = () => { layers.clear(); draw(); };
    image.src = picture.src;
    images.set(picture.src, image);
  }
  return images.get(picture.src);
}
const layers = new Map();  // a picture at a size, in colour and as what is dropped looks
function layersOf(number, width, height, unit) {
  const picture = card().pictures[number], key = `${state.card} ${number} ${width} ${height}`;
  if (layers.has(key)) return layers.get(key);
  const make = () => Object.assign(document.createElement("canvas"), { width, height });
  const colour = make(), dropped = make();
  const context = colour.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(imageOf(picture), 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const every = Math.round(7 * unit), line = Math.max(1, Math.round(unit));
  for (let i = 0; i < pixels.data.length; i += 4) {
    const p = i / 4, x = p % width, y = (p - x) / width;
    const [r, g, b] = pixels.data.subarray(i, i + 3);
    const grey = 0.299 * r + 0.587 * g + 0.114 * b;
    const veil = 0.3 * grey + ((x + y) % every < line ? 72 : 54);
    pixels.data[i] = veil; pixels.data[i + 1] = veil + 4; pixels.data[i + 2] = veil + 12;
  }
  dropped.getContext("2d").putImageData(pixels, 0, 0);
  if (layers.size > 12) layers.clear();
  layers.set(key, { colour, dropped });
  return layers.get(key);
}

let grids = [];  // {box, canvas, view, run, other}: every grid that is drawn
const cellOf = (view, token) => {
  const at = view.tokens.indexOf(token);
  return at < 0 ? -1 : view.cells[at];
};
function draw() {
  for (const grid of grids) paint(grid);
}
function paint({ box, canvas, view, run, other, which }) {
  const picture = card().pictures[view.picture], image = imageOf(picture);
  box.style.maxWidth = `calc(76vh * ${picture.width / picture.height})`;
  const wide = box.clientWidth, tall = Math.round((wide * picture.height) / picture.width);
  const unit = window.devicePixelRatio || 1;
  const width = Math.round(wide * unit), height = Math.round(tall * unit);
  box.style.height = `${tall}px`;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  if (!image.complete || !image.naturalWidth || !width) return;
  const context = canvas.getContext("2d");
  const own = kept(run, state.keep), rank = new Map(own.map((token, i) => [token, i]));
  const theirs = other ? new Set(kept(other, state.keep)) : null;
  const inside = new Map();  // cell -> token, of those kept
  view.tokens.forEach((token, i) => { if (rank.has(token)) inside.set(view.cells[i], token); });
  const { rows, columns } = view;
  const cellWidth = width / columns, cellHeight = height / rows;
  const thin = Math.min(1, Math.max(0.45, Math.min(cellWidth, cellHeight) / (13 * unit)));
  const x = (column) => Math.round((column * width) / columns);
  const y = (row) => Math.round((row * height) / rows);
  const rect = (cell) => {
    const row = Math.floor(cell / columns), column = cell % columns;
    return [x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row)];
  };
  const { colour, dropped } = layersOf(view.picture, width, height, unit);
  context.drawImage(dropped, 0, 0);
  if (state.mode === "relevance" && run.relevance) {
    const most = Math.max(...run.relevance) || 1;
    view.tokens.forEach((token, i) => {
      const share = run.relevance[token] / most;
      context.fillStyle = `rgb(${mix(MAGMA, share)} / ${0.55 + 0.3 * share})`;
      context.fillRect(...rect(view.cells[i]));
    });
  } else {
    for (const [cell, token] of inside) {
      const at = rect(cell);
      context.drawImage(colour, ...at, ...at);
      if (state.mode === "order") {
        context.fillStyle = `rgb(${mix(VIRIDIS, rank.get(token) / Math.max(1, own.length - 1))} / 0.78)`;
        context.fillRect(...at);
      } else if (theirs && !theirs.has(token)) {
        context.globalAlpha = thin > 0.6 ? 0.34 : 0.5;
        context.fillStyle = ONLY[which];
        context.fillRect(...at);
        context.globalAlpha = 1;
        context.strokeStyle = ONLY[which];
        const edge = 2 * unit * thin;
        context.lineWidth = edge;
        if (thin > 0.6) context.strokeRect(at[0] + edge, at[1] + edge, at[2] - 2 * edge, at[3] - 2 * edge);
      }
    }
  }
  const lines = new Path2D(), bound = new Path2D();
  for (let column = 1; column < columns; column++) { lines.moveTo(x(column), 0); lines.lineTo(x(column), height); }
  for (let row = 1; row < rows; row++) { lines.moveTo(0, y(row)); lines.lineTo(width, y(row)); }
  if (Math.min(cellWidth, cellHeight) >= 6 * unit) {
    context.lineWidth = 1;
    context.strokeStyle = "rgb(255 255 255 / 0.16)";
    context.stroke(lines);
  }
  for (const cell of inside.keys()) {  // the bound of what is kept, seen on any picture
    const row = Math.floor(cell / columns), column = cell % columns;
    const edge = (near, ax, ay, bx, by) => {
      if (near) return;
      bound.moveTo(x(ax), y(ay));
      bound.lineTo(x(bx), y(by));
    };
    edge(inside.has(cell - columns), column, row, column + 1, row);
    edge(inside.has(cell + columns), column, row + 1, column + 1, row + 1);
    edge(column > 0 && inside.has(cell - 1), column, row, column, row + 1);
    edge(column < columns - 1 && inside.has(cell + 1), column + 1, row, column + 1, row + 1);
  }
  for (const [style, thick] of [["rgb(10 12 16 / 0.75)", 3], ["#fff", 1.3]]) {
    context.strokeStyle = style;
    context.lineWidth = thick * unit * thin;
    context.stroke(bound);
  }
  if (state.mode === "order" && Math.min(cellWidth, cellHeight) >= 19 * unit) {
    const size = Math.min(12.5 * unit, 0.48 * cellWidth);
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [cell, token] of inside) {
      const [left, top, wide, tall] = rect(cell), at = rank.get(token);
      context.fillStyle = at < 0.55 * own.length ? "#12151a" : "#fff";
      context.fillText(String(at + 1), left + wide / 2, top + tall / 2 + unit / 2);
    }
  }
  const cell = cellOf(view, state.token);
  if (cell >= 0) {
    const [left, top, wide, tall] = rect(cell);
    for (const [style, thick] of [["#0b0d11", 5], ["#ffd43b", 2.6]]) {
      context.strokeStyle = style;
      context.lineWidth = thick * unit;
      context.strokeRect(left, top, wide, tall);
    }
  }
  box.dataset.kept = [...inside.values()].sort((a, b) => a - b).join(" ");
}

function panels() {
  const runs = shown();
  grids = [];
  const made = runs.map((run, which) => {
    const figure = el("figure", { class: "panel" });
    if (runs.length > 1) {
      figure.append(el("figcaption", {}, ...key(which), told(label(run, runs))));
    }
    for (const view of card().views) {
      const canvas = el("canvas", { "aria-hidden": "true" });
      const name = [view.name, `${view.rows} rows by ${view.columns} columns of tokens`];
      const box = el("div", {
        class: "grid", tabindex: "0", role: "application", "aria-describedby": "token",
        "aria-label": `${name.filter(Boolean).join(", ")}. Arrow keys move from token to token.`,
      }, canvas);
      if (card().views.length > 1) figure.append(el("p", { class: "small view" }, view.name));
      figure.append(box);
      const grid = { box, canvas, view, run, which, other: runs[1 - which] };
      listen(grid);
      grids.push(grid);
    }
    return figure;
  });
  $("panels").replaceChildren(...made);
  $("panels").className = runs.length > 1 ? "two" : "one";
}
function listen({ box, view }) {
  const at = (event) => {
    const { left, top, width, height } = box.getBoundingClientRect();
    const row = Math.floor(((event.clientY - top) / height) * view.rows);
    const column = Math.floor(((event.clientX - left) / width) * view.columns);
    const found = view.cells.indexOf(row * view.columns + column);
    point(found < 0 ? -1 : view.tokens[found]);
  };
  box.addEventListener("pointermove", at);
  box.addEventListener("pointerdown", at);
  box.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && document.activeElement !== box) point(-1);
  });
  box.addEventListener("focus", () => {
    if (cellOf(view, state.token) < 0) point(view.tokens[0]);
  });
  box.addEventListener("keydown", (event) => {
    const cell = Math.max(0, cellOf(view, state.token)), { rows, columns } = view;
    const row = Math.floor(cell / columns), column = cell % columns;
    const to = {
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column], Home: [row, 0], End: [row, columns - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const [r, c] = [Math.min(Math.max(to[0], 0), rows - 1), Math.min(Math.max(to[1], 0), columns - 1)];
    const found = view.cells.indexOf(r * columns + c);
    if (found >= 0) point(view.tokens[found]);
  });
}
function point(token) {
  if (token === state.token) return;
  state.token = token;
  draw();
  tokenLine();
  remember();
}

// --- Words and figures ---------------------------------------------------------------------------

function tokenLine() {
  const line = $("token"), { token } = state;
  if (token < 0) {
    line.replaceChildren(el("span", { class: "hint" }, "Point at a token, or move to it with the arrow keys, to read what it is."));
    return;
  }
  const view = card().views.find((each) => each.tokens.includes(token));
  const parts = [];
  if (view) {
    const cell = cellOf(view, token);
    const at = `row ${Math.floor(cell / view.columns) + 1}, column ${(cell % view.columns) + 1}`;
    parts.push(view.name ? `${view.name}, ${at}` : at);
  } else parts.push("a newline token, which shows no place");
  parts.push(`${percent(card().energies[token] / total(), 2)} of the energy`);
  shown().forEach((run, which) => {
    const own = kept(run, state.keep).indexOf(token), at = run.nested ? run.order.indexOf(token) : own;
    const said = [own >= 0 ? "kept" : "dropped"];
    if (at >= 0) said.push(`choice ${at + 1}`);
    if (at >= 0 && run.nested) {
      const gain = (run.energy[at] - run.energy[at + 1]) / run.energy[0];
      said.push(`takes ${percent(gain, 2)} of the energy away`);
    }
    if (run.relevance) said.push(`relevance ${plain(run.relevance[token])}`);
    parts.push(el("span", {}, ...key(which), said.join(", ")));
  });
  const items = parts.map((part) => el("span", { class: "part" }, part));
  line.replaceChildren(el("b", {}, `Token ${token}`), ...items);
}

function said(run) {  // what is known of the answer at this budget
  const down = run.answers, { keep } = state;
  const exact = down.find((answer) => answer.keep === keep);
  if (exact) return [told(exact.text)];
  const low = down.find((answer) => answer.keep < keep);
  const high = down.findLast((answer) => answer.keep > keep);
  if (!low) return [told(high.text), ` at ${high.keep}, the smallest budget asked`];
  if (!run.turns.some(([a, b]) => a === low.keep && b === high.keep)) {
    return [told(high.text), ` at ${low.keep} and at ${high.keep}`];
  }
  return [`turns between ${low.keep} and ${high.keep}: `, told(low.text), ", then ", told(high.text)];
}

function legend() {
  const box = $("legend"), runs = shown(), bar = (name) => el("i", { class: `bar ${name}` });
  if (state.mode === "order") box.replaceChildren("first", bar("viridis"), "last of those kept");
  else if (state.mode === "relevance") {
    const without = runs.filter((run) => !run.relevance).map((run) => run.method);
    const some = runs.some((run) => run.relevance && Math.max(...run.relevance) > 0);
    const parts = some ? ["none", bar("magma"), "most relevant; outlined: kept"]
      : ["No token is relevant to these nouns; outlined: kept"];
    if (without.length) parts.push(el("span", {}, `. ${[...new Set(without)].join(", ")} has no relevance`));
    box.replaceChildren(...parts);
  } else if (runs.length > 1) {
    const [one, two] = runs.map((run) => new Set(kept(run, state.keep)));
    const both = [...one].filter((token) => two.has(token)).length;
    const keys = [["both", `${both} in common`], ["only0", `${one.size - both} left only`], ["only1", `${two.size - both} right only`]];
    box.replaceChildren(...keys.map(([name, text]) => el("span", { class: "item" }, el("i", { class: `key ${name}` }), text)));
  } else {
    box.replaceChildren(...[["both", "kept"], ["away", "dropped"]].map(([name, text]) =>
      el("span", { class: "item" }, el("i", { class: `key ${name}` }), text)));
  }
}

const svg = (tag, given) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) made.setAttribute(name, value);
  return made;
};
const LEAST = 0.001;  // the share at the foot of the curve, whose axis is logarithmic
const THUMB = 20;  // of the slider, in pixels: the axis runs from the middle of one end to the other
function curve() {
  const box = $("curve"), wide = box.clientWidth, tall = box.clientHeight;
  if (!wide) return;
  const top = 8, bottom = tall - 4, list = stops();
  const x = (keep) => THUMB / 2 + place(keep) * (wide - THUMB);
  const y = (share) => bottom - (bottom - top) * Math.max(0, 1 - Math.log(share) / Math.log(LEAST));
  box.setAttribute("viewBox", `0 0 ${wide} ${tall}`);
  const made = [];
  const shares = [1, 0.1, 0.01, LEAST];
  for (const share of shares) {
    made.push(svg("line", { x1: THUMB / 2, x2: wide - THUMB / 2, y1: y(share), y2: y(share), class: "rule" }));
  }
  made.push(svg("line", { x1: x(state.keep), x2: x(state.keep), y1: top, y2: tall, class: "mark" }));
  shown().forEach((run, which) => {
    const name = shown().length > 1 ? `only${which}` : "";
    const least = list ? list[0] : 1;
    const points = run.nested
      ? run.energy.map((energy, keep) => [keep, energy / run.energy[0]]).filter(([keep]) => keep >= least)
      : run.answers.map((answer) => [answer.keep, left(run, answer.keep)]);
    const text = points.map(([keep, share]) => `${x(keep).toFixed(1)},${y(share).toFixed(1)}`).join(" ");
    made.push(svg("polyline", { points: text, class: `line ${name}` }));
    made.push(svg("circle", { cx: x(state.keep), cy: y(left(run, state.keep)), r: 4.5, class: `dot ${name}` }));
  });
  for (const share of shares) {
    const text = svg("text", { x: wide - THUMB / 2, y: y(share) + (share === LEAST ? -3 : 11), "text-anchor": "end" });
    text.append(share === LEAST ? `${plain(100 * share)} % or less` : `${plain(100 * share)} %`);
    made.push(text);
  }
  box.replaceChildren(...made);
  const parts = shown().map((run) => percent(left(run, state.keep)));
  $("curve-text").replaceChildren(el("b", {}, `${parts.join(" and ")} of the energy left out`),
    ": what lies outside the span of the tokens kept. Dots: budgets that were asked",
    shown().some((run) => run.turns.length) ? "; bars: the answer turns." : ".");
  $("stops").replaceChildren(...shown().map((run) => {
    const strip = el("div", { class: "strip" });
    for (const [low, high] of run.turns) {
      const bar = el("i", { class: "turn", "data-low": low, "data-high": high });
      bar.style.left = `${x(low)}px`;
      bar.style.width = `${x(high) - x(low)}px`;
      strip.append(bar);
    }
    for (const answer of run.answers) {
      const dot = el("i", { class: answer.keep === state.keep ? "stop now" : "stop" });
      dot.style.left = `${x(answer.keep)}px`;
      strip.append(dot);
    }
    return strip;
  }));
}

function answers() {
  const runs = shown(), all = card().tokens;
  const keeps = [...new Set(runs.flatMap((run) => run.answers.map((answer) => answer.keep)))].sort((a, b) => b - a);
  const rows = keeps.map((keep) => {
    const go = el("button", { type: "button", onclick: () => move(keep) }, keep === all ? `all ${keep}` : String(keep));
    const cells = runs.map((run) => {
      const answer = run.answers.find((one) => one.keep === keep);
      const turn = run.turns.find(([low]) => low === keep);
      const cell = el("td", turn ? { class: "turned" } : {});
      if (turn) cell.append(el("span", { class: "tag", "data-low": turn[0], "data-high": turn[1] }, "turns"), " ");
      if (answer) cell.append(told(answer.text));
      return cell;
    });
    const row = el("tr", { "data-keep": keep, "aria-current": keep === state.keep ? "true" : null }, el("th", { scope: "row" }, go), ...cells);
    return row;
  });
  const methods = new Set(runs.map((run) => run.method)).size > 1;
  const heads = runs.map((run, which) => el("th", { scope: "col" }, ...key(which),
    runs.length < 2 ? "Answer" : methods ? told(run.method) : ["Left", "Right"][which]));
  $("answers").replaceChildren(el("table", {},
    el("caption", { class: "unseen" }, "Answers by budget; turns marks one that differs from the one above"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Tokens"), ...heads)), el("tbody", {}, ...rows)));
}

function table() {
  if (!$("list").open) return;
  const made = shown().map((run) => {
    const rows = kept(run, state.keep).map((token, i) => {
      const view = card().views.find((each) => each.tokens.includes(token));
      const cell = view ? cellOf(view, token) : -1;
      const at = view
        ? `${view.name ? `${view.name}: ` : ""}${Math.floor(cell / view.columns) + 1}, ${(cell % view.columns) + 1}` : "newline";
      const relevance = run.relevance ? plain(run.relevance[token]) : "–";
      const values = [token, at, relevance, percent(card().energies[token] / total(), 2)];
      return el("tr", {}, el("th", { scope: "row" }, String(i + 1)), ...values.map((value) => el("td", {}, String(value))));
    });
    const heads = ["Choice", "Token", "Row, column", "Relevance", "Energy"];
    return el("table", {}, el("caption", {}, told(label(run))),
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...rows));
  });
  $("table").replaceChildren(...made);
}

// --- All of it -----------------------------------------------------------------------------------

function budget() {  // what follows the budget
  const runs = shown(), list = stops(), slider = $("budget");
  slider.min = list ? 0 : 1;
  slider.max = list ? list.length - 1 : card().tokens;
  slider.value = list ? list.indexOf(state.keep) : state.keep;
  const texts = runs.map(said);
  slider.setAttribute("aria-valuetext", `${state.keep} of ${card().tokens} tokens; answer: ${texts.map((own) => own.map((part) => part.textContent ?? part).join("")).join("; ")}`);
  $("count").textContent = state.keep;
  $("of").textContent = `of ${card().tokens} tokens, ${percent(state.keep / card().tokens)}`;
  $("said").replaceChildren(...texts.map((own, which) =>
    el("p", {}, ...key(which), ...own)));
  for (const row of $("answers").querySelectorAll("tbody tr")) {
    if (Number(row.dataset.keep) === state.keep) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  curve();
  legend();
  draw();
  tokenLine();
  table();
  remember();
}
function move(keep) {
  state.keep = nearest(keep);
  budget();
}
function everything() {  // what follows the card and its runs
  const runs = shown(), { name } = card();
  $("model").textContent = data.model;
  $("name").textContent = name;
  const prompts = [...new Set(runs.map((run) => run.prompt))];
  $("question").replaceChildren(prompts.length > 1 ? "Two questions about one picture" : told(prompts[0]));
  document.body.classList.toggle("questions", prompts.length > 1);
  $("choose").hidden = card().runs.length < 2;
  const options = (none) => [...(none ? [el("option", { value: -1 }, "nothing")] : []),
    ...card().runs.map((run, i) => el("option", { value: i, dir: "auto" }, label(run)))];
  $("first").replaceChildren(...options(false));
  $("second").replaceChildren(...options(true));
  $("first").value = state.first;
  $("second").value = state.second;
  for (const input of document.querySelectorAll("#modes input")) input.checked = input.value === state.mode;
  const nouns = [...new Set(runs.flatMap((run) => run.nouns))];
  $("nouns").replaceChildren(...(nouns.length
    ? ["Nouns that guide the choice: ", ...nouns.map((noun) => el("mark", {}, told(noun))), ` found by ${runs[0].noun_backend}.`]
    : ["No nouns guide this choice."]));
  const notes = [...new Set(runs.map((run) => run.note))];
  if (runs.some((run) => !run.nested)) notes.push("Choices of this method are not nested: the slider steps between the budgets asked, each with its own choice.");
  const placed = new Set(card().views.flatMap((view) => view.tokens));
  if (placed.size < card().tokens) notes.push(`${card().tokens - placed.size} newline tokens show no place of the picture.`);
  $("notes").replaceChildren(notes.filter(Boolean).join(" "));
  for (const button of $("cards").children) button.setAttribute("aria-current", String(Number(button.dataset.card) === state.card));
  panels();
  answers();
  budget();
}
function thumbnails() {
  $("cards").hidden = data.cards.length < 2;
  $("cards").replaceChildren(...data.cards.map((one, i) => {
    const image = el("img", { alt: "", src: one.pictures[0].src });
    const go = () => { Object.assign(state, { card: i, first: 0, second: one.runs.length > 1 ? 1 : -1, token: -1 }); move(state.keep); everything(); };
    return el("button", { type: "button", "data-card": i, onclick: go }, image, told(one.name));
  }));
}

$("budget").addEventListener("input", (event) => {
  const value = Number(event.target.value), list = stops();
  move(list ? list[value] : value);
});
for (const name of ["first", "second"]) {
  $(name).addEventListener("change", (event) => {
    state[name] = Number(event.target.value);
    if (state.first === state.second) state[name === "first" ? "second" : "first"] = name === "first" ? -1 : card().runs.findIndex((_, i) => i !== state.second);
    state.keep = nearest(state.keep);
    everything();
  });
}
$("modes").addEventListener("change", (event) => { state.mode = event.target.value; budget(); });
$("list").addEventListener("toggle", table);
document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".grid")) point(-1); });
window.addEventListener("hashchange", () => { read(); everything(); });
new ResizeObserver(() => { curve(); draw(); }).observe(document.querySelector("main"));
$("made").textContent = `Made by ${data.made_by}. The data of this page: resprune_jax.experiments.explore.load(file).`;
read();
thumbnails();
everything();
})();
