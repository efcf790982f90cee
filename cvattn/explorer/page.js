const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const short = (name) => name === content.rollout ? "rollout"
  : name.replace(/((en|de)coder\.)?(layers|blocks)\.(\d+)\.(self_attn|cross_attn|attn)$/, (...found) => `layer ${+found[4] + 1}`)
    .replace(/^attention\.|\.?inserted_attention$/g, "") || name;

function read() {
  const block = blocks[state.block], { values, onPrefix } = heat(state.block, state.head);
  const top = values.indexOf(Math.max(...values)), wide = block.grid[1];
  const place = ([y, x]) => `row ${y + 1}, column ${x + 1}`;
  const from = onGrid(block) ? place(cell(block)) : queryName(block, row(block));
  const to = place([Math.floor(top / wide), top % wide]);
  element("reading").textContent = `From ${from}: most, ${percent(values[top])}, goes to ${to} `
    + `(evenly spread, each would have ${percent(1 / values.length)})`
    + (block.num_prefix_tokens ? `; ${percent(onPrefix)} to the ${queryName(block, 0)}.` : ".");
  element("stage").setAttribute("aria-label", `${caption(shown)}. Seen from ${from}.`);
}

function queryName(block, index) {
  if (block.reads) return `character ${index + 1}, “${shown.characters[index]}”`;
  return index === 0 ? "class token" : `register ${index}`;
}

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
      `entropy ${number(block.entropy[head])}`,
      ...block.distance.slice(head, head + 1).map((distance) => `distance ${number(distance)}`)];
    tile(element("heads"), head, lines, () => choose({ head }));
  }
  element("headsof").textContent = `of ${short(block.name)}; entropy in nats`
    + (block.reads ? "" : `, distance in steps of its ${block.full.join(" × ")} grid`) + ", over all images";
  const pooled = blocks.filter((b) => b.full.join() !== b.grid.join());
  element("note").textContent = pooled.length
    ? `To keep the page small, weights are pooled: ${pooled.map((b) =>
      `${short(b.name)} from ${b.full.join(" × ")} to ${b.grid.join(" × ")} positions`).join("; ")}.` : "";
  makeQueries(block);
}

// Buttons for the queries that are no places: characters, or prefix tokens.
function makeQueries(block) {
  const names = block.reads ? shown.characters
    : [...Array(block.num_prefix_tokens).keys()].map((index) =>
      `look from the ${queryName(block, index)}${index ? "" : " (C)"}`);
  element("queries").replaceChildren(...names.map((name, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () =>
      choose(block.reads ? { character: index } : { prefix: index }));
    return button;
  }));
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
  const block = blocks[state.block];
  [...element("queries").children].forEach((button, index) =>
    button.setAttribute("aria-pressed", !onGrid(block) && row(block) === index));
  read();
}

async function showImage(index) {
  const image = images[index], next = new Image();
  next.src = image.picture;
  const [, unpackedWeights] = await Promise.all([next.decode(), unpacked(image)]);
  if (state.image !== index) return; // another one was asked for meanwhile
  [shown, picture, weights] = [image, next, unpackedWeights];
  document.body.classList.toggle("wide", next.naturalWidth > 2 * next.naturalHeight);
  makeQueries(blocks[state.block]);
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
  const box = element("stage").getBoundingClientRect(), block = blocks[state.block];
  const place = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  if (!block.reads) return choose({ prefix: null, ...place });
  Object.assign(state, place);
  return choose({ character: readFrom(block) });
}

// The character that looks most at the column of the place.
function readFrom(block) {
  const [, x] = cell(block), [height, width] = block.grid;
  const seen = shown.characters.map((_, index) => {
    const { values } = heat(state.block, state.head, index);
    return Array.from({ length: height }, (_, y) => values[y * width + x]).reduce((a, b) => a + b);
  });
  return seen.indexOf(Math.max(...seen));
}

function step(down, right) {
  const block = blocks[state.block], [height, width] = block.grid, [y, x] = cell(block);
  if (block.reads) {
    const to = row(block) + down + right;
    return choose({ character: Math.min(shown.characters.length - 1, Math.max(0, to)) });
  }
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
