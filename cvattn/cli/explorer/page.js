"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const { blocks, images } = content;
const element = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const colours = bytes(content.colours);
const MEAN = -1;

// What is shown. The query is kept as a place on the image (0..1), so that it stays where it is when
// blocks of other grids are chosen; a prefix token has no place.
const state = { image: 0, block: 0, head: MEAN, x: 0.5, y: 0.5, prefix: null, strength: 0.7 };
let picture = new Image();
let weights = [];

const sizeOf = (block) => block.grid[0] * block.grid[1];
const rowsOf = (block) => block.num_prefix_tokens + sizeOf(block);

async function unpacked(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  let at = 0;
  const floats = () => blocks.map((block) => {
    const part = new Float32Array(buffer, at, block.num_heads * rowsOf(block));
    at += part.byteLength;
    return part;
  });
  const [peaks, prefix] = [floats(), floats()];
  return blocks.map((block, index) => {
    const shares = new Uint8Array(buffer, at, block.num_heads * rowsOf(block) * sizeOf(block));
    at += shares.byteLength;
    return { peaks: peaks[index], prefix: prefix[index], shares };
  });
}

function cell(block) {
  const [height, width] = block.grid;
  const inside = (place, size) => Math.min(size - 1, Math.max(0, Math.floor(place * size)));
  return [inside(state.y, height), inside(state.x, width)];
}

function row(block) {
  if (state.prefix !== null && state.prefix < block.num_prefix_tokens) return state.prefix;
  const [y, x] = cell(block);
  return block.num_prefix_tokens + y * block.grid[1] + x;
}

// Weights of the query, for a head or the mean of all: { values over the grid, share of prefix }.
function heat(index, head) {
  const block = blocks[index], { shares, peaks, prefix } = weights[index];
  const size = sizeOf(block), rows = rowsOf(block), values = new Float64Array(size);
  const heads = head === MEAN ? [...Array(block.num_heads).keys()] : [head];
  let onPrefix = 0;
  for (const h of heads) {
    const at = h * rows + row(block), peak = peaks[at] / 255 / heads.length;
    for (let k = 0; k < size; k++) values[k] += shares[at * size + k] * peak;
    onPrefix += prefix[at] / heads.length;
  }
  return { values, onPrefix };
}

function draw(canvas, index, head, strength, marked) {
  const block = blocks[index], [height, width] = block.grid, { values } = heat(index, head);
  const most = Math.max(...values, 1e-30);
  const small = new OffscreenCanvas(width, height), pixels = new ImageData(width, height);
  values.forEach((value, k) => {
    const share = value / most, colour = 3 * Math.round(255 * share);
    // Where there is little heat the image shines through, until the slider is at its end.
    const alpha = 255 * strength ** (3 - 2.4 * share);
    pixels.data.set([...colours.subarray(colour, colour + 3), alpha], 4 * k);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const wide = canvas.clientWidth * devicePixelRatio || 100;
  canvas.width = wide;
  canvas.height = Math.round((wide * picture.naturalHeight) / picture.naturalWidth);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.filter = `grayscale(${Math.min(1, 2 * strength)})`;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  if (marked && row(block) >= block.num_prefix_tokens) mark(context, block, canvas);
}

function mark(context, block, canvas) {
  const [y, x] = cell(block), high = canvas.height / block.grid[0], wide = canvas.width / block.grid[1];
  const thin = Math.max(1, canvas.width / 300);
  for (const [colour, line] of [["#000", 3 * thin], ["#3ff", 1.5 * thin]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(x * wide + line / 2, y * high + line / 2, wide - line, high - line);
  }
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const short = (name) => name === content.rollout ? "rollout"
  : name.replace(/(encoder\.)?(layers|blocks)\.(\d+)\.(self_attn|attn)$/, (_, a, b, n) => `layer ${+n + 1}`)
    .replace(/^attention\.|\.?inserted_attention$/g, "") || name;

function read() {
  const block = blocks[state.block], { values, onPrefix } = heat(state.block, state.head);
  const top = values.indexOf(Math.max(...values)), wide = block.grid[1];
  const place = ([y, x]) => `row ${y + 1}, column ${x + 1}`;
  const from = row(block) < block.num_prefix_tokens ? prefixName(row(block)) : place(cell(block));
  const to = place([Math.floor(top / wide), top % wide]);
  element("reading").textContent = `From ${from}: most, ${percent(values[top])}, goes to ${to} `
    + `(evenly spread, each would have ${percent(1 / values.length)})`
    + (block.num_prefix_tokens ? `; ${percent(onPrefix)} to the ${prefixName(0)}.` : ".");
  element("stage").setAttribute("aria-label", `${caption(images[state.image])}. Seen from ${from}.`);
}

const prefixName = (index) => (index === 0 ? "class token" : `register ${index}`);

function caption(image) {
  const [name, share] = image.guesses[0];
  const verdict = image.label === null ? "" : image.label === name ? " ✓" : ` ✗ it is ${image.label}`;
  return `${image.name}: ${name}, ${percent(share)}${verdict}`;
}

// Tiles are made once, and only their pictures are drawn anew.
function tile(parent, chosen, lines, choose) {
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  button.type = "button";
  button.append(canvas);
  lines.forEach((line, index) => {
    const part = document.createElement(index ? "span" : "b");
    part.textContent = line;
    button.append(part);
  });
  button.title = lines.join(", ");
  button.addEventListener("click", choose);
  button.dataset.value = chosen;
  parent.append(button);
}

function makeTiles() {
  element("blocks").replaceChildren();
  blocks.forEach((block, index) => tile(element("blocks"), index, [
    short(block.name),
    block.gamma === null ? `${block.grid.join(" × ")}` : `gamma ${block.gamma.toFixed(2)}`,
  ], () => choose({ block: index })));
  const block = blocks[state.block], number = (x) => x.toFixed(2);
  element("heads").replaceChildren();
  const all = block.num_heads > 1 ? [MEAN] : [];
  for (const head of [...all, ...Array(block.num_heads).keys()]) {
    const lines = head === MEAN ? ["mean"] : [`head ${head + 1}`,
      `entropy ${number(block.entropy[head])}`, `distance ${number(block.distance[head])}`];
    tile(element("heads"), head, lines, () => choose({ head }));
  }
  element("headsof").textContent = `of ${short(block.name)}; entropy in nats, distance in steps of its `
    + `${block.full.join(" × ")} grid, over all images`;
  const pooled = blocks.filter((b) => b.full.join() !== b.grid.join());
  element("note").textContent = pooled.length
    ? `To keep the page small, weights are pooled: ${pooled.map((b) =>
      `${short(b.name)} from ${b.full.join(" × ")} to ${b.grid.join(" × ")} positions`).join("; ")}.` : "";
  element("prefix").replaceChildren();
  for (let index = 0; index < block.num_prefix_tokens; index++) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `look from the ${prefixName(index)}${index ? "" : " (C)"}`;
    button.addEventListener("click", () => choose({ prefix: index }));
    element("prefix").append(button);
  }
}

function drawAll() {
  draw(element("stage"), state.block, state.head, state.strength, true);
  for (const [id, current] of [["blocks", state.block], ["heads", state.head]]) {
    for (const button of element(id).children) {
      const value = +button.dataset.value;
      button.setAttribute("aria-pressed", value === current);
      const [block, head] = id === "blocks" ? [value, MEAN] : [state.block, value];
      draw(button.firstChild, block, head, 0.85, true);
    }
  }
  for (const button of element("prefix").children) {
    button.setAttribute("aria-pressed", state.prefix !== null);
  }
  read();
}

async function showImage(index) {
  const image = images[index], next = new Image();
  next.src = image.picture;
  const [, unpackedWeights] = await Promise.all([next.decode(), unpacked(image.weights)]);
  if (state.image !== index) return; // another one was asked for meanwhile
  [picture, weights] = [next, unpackedWeights];
  const [name, share] = image.guesses[0], wrong = image.label !== null && image.label !== name;
  const strong = document.createElement("strong");
  strong.textContent = `${name}, ${percent(share)}`;
  strong.className = image.label === null ? "" : wrong ? "wrong" : "right";
  const others = image.guesses.slice(1).map(([n, p]) => `${n} (${percent(p)})`).join(", ");
  element("caption").replaceChildren(strong,
    image.label === null ? "" : wrong ? ` ✗ it is ${image.label}` : " ✓", others && `; or ${others}`);
  [...element("images").children].forEach((button, i) => {
    button.setAttribute("aria-pressed", i === index);
    if (i === index) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  drawAll();
}

function choose(change) {
  const block = state.block, image = state.image;
  Object.assign(state, change);
  state.head = Math.min(state.head, blocks[state.block].num_heads - 1);
  if (blocks[state.block].num_heads === 1) state.head = 0;
  if (state.block !== block) makeTiles();
  if (state.image !== image) return showImage(state.image);
  return drawAll();
}

function point(event) {
  const box = element("stage").getBoundingClientRect();
  choose({
    prefix: null,
    x: (event.clientX - box.left) / box.width,
    y: (event.clientY - box.top) / box.height,
  });
}

function step(down, right) {
  const block = blocks[state.block], [height, width] = block.grid, [y, x] = cell(block);
  const to = (at, size) => (Math.min(size - 1, Math.max(0, at)) + 0.5) / size;
  choose({ prefix: null, y: to(y + down, height), x: to(x + right, width) });
}

const around = (value, size) => (value + size) % size;
const heads = () => blocks[state.block].num_heads;
const turnHead = (by) => heads() === 1 || choose({ head: around(state.head + 1 + by, heads() + 1) - 1 });
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const keys = {
  "[": () => choose({ block: around(state.block - 1, blocks.length) }),
  "]": () => choose({ block: around(state.block + 1, blocks.length) }),
  ",": () => turnHead(-1),
  ".": () => turnHead(1),
  n: () => choose({ image: around(state.image + 1, images.length) }),
  p: () => choose({ image: around(state.image - 1, images.length) }),
  c: () => blocks[state.block].num_prefix_tokens && choose({ prefix: 0 }),
  h: () => setStrength(state.strength > 0 ? 0 : 70),
  d: () => turnTheme(),
};

function setStrength(hundredths) {
  element("strength").value = hundredths;
  choose({ strength: hundredths / 100 });
}

function turnTheme() {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
}

function start() {
  document.title = element("title").textContent = content.title;
  element("facts").textContent = content.facts.join(" · ");
  images.forEach((image, index) => {
    const button = document.createElement("button"), small = document.createElement("img");
    const name = document.createElement("span"), guess = image.guesses[0][0];
    [small.src, small.alt] = [image.picture, ""];
    name.textContent = guess;
    if (image.label !== null && image.label !== guess) name.className = "wrong";
    button.type = "button";
    button.title = caption(image);
    button.append(small, name);
    button.addEventListener("click", () => choose({ image: index }));
    element("images").append(button);
  });
  element("theme").addEventListener("click", turnTheme);
  element("strength").addEventListener("input", (event) => setStrength(+event.target.value));
  const stage = element("stage");
  stage.addEventListener("pointermove", point);
  stage.addEventListener("pointerdown", point);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps && [stage, document.body].includes(document.activeElement)) {
      event.preventDefault();
      step(...steps[event.key]);
    } else if (event.key.toLowerCase() in keys) keys[event.key.toLowerCase()]();
  });
  addEventListener("resize", () => weights.length && drawAll());
  if (blocks[state.block].num_heads === 1) state.head = 0;
  makeTiles();
  return showImage(0);
}

// For the console, and for tests of the page: what is shown, as numbers.
window.explorer = { state, heat: () => heat(state.block, state.head), choose, ready: start() };
