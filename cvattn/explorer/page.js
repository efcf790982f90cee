function drawAll() {
  draw(element("stage"), state.block, state.head, state.strength, true);
  for (const [id, current] of [["blocks", state.block], ["heads", state.head]]) {
    if (id === "heads" && state.target !== null) continue; // hidden: heat is of all heads
    for (const button of element(id).children) {
      const value = +button.dataset.value;
      button.setAttribute("aria-pressed", value === current);
      const [block, head] = id === "blocks" ? [value, MEAN] : [state.block, value];
      draw(button.firstChild, block, head, 0.85, true);
    }
  }
  read();
}

async function showImage(index) {
  const image = images[index], next = new Image();
  next.src = image.picture;
  const [, unpackedWeights, unpackedHeats] = await Promise.all(
    [next.decode(), unpacked(image), unpackedTargets(image)]);
  if (state.image !== index) return; // another one was asked for meanwhile
  [shown, picture, weights, heats] = [image, next, unpackedWeights, unpackedHeats];
  if (state.target !== null && state.target >= heats.length) state.target = null;
  document.body.classList.toggle("wide", next.naturalWidth > 2 * next.naturalHeight);
  makeQueries(blocks[state.block]);
  makeTargets();
  tellCaption(image);
  [...element("images").children].forEach((button, i) => {
    button.setAttribute("aria-pressed", i === index);
    if (i === index) bringIntoView(button, element("images"));
  });
  updateChoices();
  drawAll();
}

// Sideways in its row alone: scrollIntoView would also move the notebook that the page is in.
function bringIntoView(button, row) {
  const before = button.offsetLeft - row.offsetLeft, after = before + button.offsetWidth;
  if (before < row.scrollLeft) row.scrollLeft = before;
  else if (after > row.scrollLeft + row.clientWidth) row.scrollLeft = after - row.clientWidth;
}

function choose(change) {
  const block = state.block, image = state.image;
  Object.assign(state, change);
  state.head = Math.min(state.head, blocks[state.block].num_heads - 1);
  if (blocks[state.block].num_heads === 1) state.head = 0;
  if (state.block !== block) makeHeads();
  if (state.image !== image) return showImage(state.image);
  updateChoices();
  return drawAll();
}

function point(event) {
  const box = element("stage").getBoundingClientRect(), block = blocks[state.block];
  const place = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  if (block.rows !== "characters") return choose({ prefix: null, ...place });
  Object.assign(state, place);
  return choose({ character: readFrom(block) });
}

// The character that looks most at the column of the place.
function readFrom(block) {
  const [, x] = cell(block.grid), [height, width] = block.grid;
  const seen = shown.characters.map((_, index) => {
    const { values } = attention(state.block, state.head, index);
    return Array.from({ length: height }, (_, y) => values[y * width + x]).reduce((a, b) => a + b);
  });
  return largest(seen);
}

function step(down, right) {
  const block = blocks[state.block], [height, width] = block.grid, [y, x] = cell(block.grid);
  if (block.rows === "characters") {
    const to = row(block) + down + right;
    return choose({ character: Math.min(shown.characters.length - 1, Math.max(0, to)) });
  }
  const to = (at, size) => (Math.min(size - 1, Math.max(0, at)) + 0.5) / size;
  choose({ prefix: null, y: to(y + down, height), x: to(x + right, width) });
}

const around = (value, size) => (value + size) % size;
const numHeads = () => blocks[state.block].num_heads;
const turnHead = (by) =>
  numHeads() === 1 || choose({ head: around(state.head + 1 + by, numHeads() + 1) - 1 });
function turnWord(by) {
  const block = blocks[state.block];
  if (block.words.length) choose({ word: around(row(block) + by, block.words.length) });
}
function turnTarget() {
  const now = state.target === null ? 0 : state.target + 1;
  if (heats.length) choose({ target: now === heats.length ? null : now });
}
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const keys = {
  "[": () => choose({ block: around(state.block - 1, blocks.length) }),
  "]": () => choose({ block: around(state.block + 1, blocks.length) }),
  ",": () => turnHead(-1),
  ".": () => turnHead(1),
  n: () => choose({ image: around(state.image + 1, images.length) }),
  p: () => choose({ image: around(state.image - 1, images.length) }),
  c: () => blocks[state.block].num_prefix_tokens && choose({ prefix: 0 }),
  q: () => turnWord(-1),
  w: () => turnWord(1),
  g: turnTarget,
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

function makeImages() {
  images.forEach((image, index) => {
    const made = button("", () => choose({ image: index })), small = document.createElement("img");
    const name = document.createElement("span");
    [small.src, small.alt] = [image.picture, ""];
    name.textContent = image.guesses.length ? image.guesses[0][0] : image.name;
    if (isWrong(image)) name.className = "wrong";
    made.title = caption(image);
    made.append(small, name);
    element("images").append(made);
  });
}

function start() {
  document.title = element("title").textContent = content.title;
  element("facts").textContent = content.facts.join(" · ");
  // Keys of what this page has not got are not spoken of.
  element("wordkeys").hidden = !blocks.some((block) => block.words.length);
  element("targetkeys").hidden = !images.some((image) => image.targets.length);
  makeImages();
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
  makeBlocks();
  makeHeads();
  tellNotes();
  return showImage(0);
}

// For the console, and for tests of the page: what is shown, as numbers.
window.explorer = {
  state, choose, ready: start(),
  heat: () => ({ values: heat(state.block, state.head) }),
  words: () => wordShares(state.block, state.head),
};
