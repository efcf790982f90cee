"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const { blocks, images } = content;
const element = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const colours = bytes(content.colours);
const MEAN = -1;

// What is asked for. The query is kept as a place on the image (0..1), so that it stays where it is
// when blocks of other grids are chosen; a prefix token has no place, and a reader's query is one of
// the characters that it wrote. Where positions attend to words, or tokens to positions, one of these
// is chosen too. A target is a class whose heat is shown in place of attention.
const state = {
  image: 0, block: 0, head: MEAN, x: 0.5, y: 0.5, prefix: null, character: 0, word: 0, target: null,
  strength: 0.7,
};
// What is drawn: an image's entry, its picture, its weights and the heat of its classes.
let shown = images[0];
let picture = new Image();
let weights = [];
let heats = [];

const area = ([height, width]) => height * width;
const rowsOf = (block, image) => ({
  characters: () => image.characters.length,
  words: () => block.words.length,
  tokens: () => block.words.length,
  positions: () => block.num_prefix_tokens + area(block.grid),
}[block.rows]());

async function inflated(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function unpacked(image) {
  const buffer = await inflated(image.weights);
  let at = 0;
  const floats = () => blocks.map((block) => {
    const part = new Float32Array(buffer, at, block.num_heads * rowsOf(block, image));
    at += part.byteLength;
    return part;
  });
  const [peaks, prefix] = [floats(), floats()];
  return blocks.map((block, index) => {
    const size = block.num_heads * rowsOf(block, image) * area(block.drawn);
    const shares = new Uint8Array(buffer, at, size);
    at += shares.byteLength;
    return { peaks: peaks[index], prefix: prefix[index], shares };
  });
}

// For each class the heat of each block, which may have none.
async function unpackedTargets(image) {
  if (!image.targets.length) return [];
  const buffer = await inflated(image.heats);
  const peaks = new Float32Array(buffer, 0, image.targets.length * blocks.length);
  let at = peaks.byteLength;
  return image.targets.map((_, target) => blocks.map((block, index) => {
    const peak = peaks[target * blocks.length + index] / 255;
    const shares = new Uint8Array(buffer, at, area(block.drawn));
    at += shares.byteLength;
    return Float64Array.from(shares, (share) => share * peak);
  }));
}

function cell([height, width]) {
  const inside = (place, size) => Math.min(size - 1, Math.max(0, Math.floor(place * size)));
  return [inside(state.y, height), inside(state.x, width)];
}

function place(grid) {
  const [y, x] = cell(grid);
  return y * grid[1] + x;
}

function row(block) {
  if (block.rows === "characters") return Math.min(state.character, shown.characters.length - 1);
  if (block.words.length) return Math.min(state.word, block.words.length - 1);
  if (state.prefix !== null && state.prefix < block.num_prefix_tokens) return state.prefix;
  return block.num_prefix_tokens + place(block.grid);
}

const headsOf = (block, head) => (head === MEAN ? [...Array(block.num_heads).keys()] : [head]);

// Weights of a row, for a head or the mean of all: { values over the grid, share of prefix }.
function attention(index, head, query = row(blocks[index])) {
  const block = blocks[index], { shares, peaks, prefix } = weights[index];
  const size = area(block.drawn), rows = rowsOf(block, shown), values = new Float64Array(size);
  const heads = headsOf(block, head);
  let onPrefix = 0;
  for (const h of heads) {
    const at = h * rows + query, peak = peaks[at] / 255 / heads.length;
    for (let k = 0; k < size; k++) values[k] += shares[at * size + k] * peak;
    onPrefix += prefix[at] / heads.length;
  }
  return { values, onPrefix };
}

// What is drawn: attention, or the heat of the class that is chosen.
const heat = (index, head) =>
  state.target === null ? attention(index, head).values : heats[state.target][index];

// What the position that is pointed at gives to each word, or gets from each token.
function wordShares(index, head) {
  const block = blocks[index], { shares, peaks } = weights[index];
  const size = area(block.drawn), rows = block.words.length, at = place(block.drawn);
  const heads = headsOf(block, head);
  return block.words.map((_, word) => heads.reduce((sum, h) =>
    sum + (shares[(h * rows + word) * size + at] * peaks[h * rows + word]) / 255 / heads.length, 0));
}

function draw(canvas, index, head, strength, marked) {
  const block = blocks[index], [height, width] = block.drawn, values = heat(index, head);
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
  if (marked && onGrid(block)) mark(context, block, canvas);
}

// Whether it is a position of the image that looks, and where does so matter.
const onGrid = (block) => state.target === null && (block.words.length > 0
  || (block.rows === "positions" && row(block) >= block.num_prefix_tokens));

function mark(context, block, canvas) {
  const [y, x] = cell(block.grid);
  const high = canvas.height / block.grid[0], wide = canvas.width / block.grid[1];
  const thin = Math.max(1, canvas.width / 300);
  for (const [colour, line] of [["#000", 3 * thin], ["#3ff", 1.5 * thin]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(x * wide + line / 2, y * high + line / 2, wide - line, high - line);
  }
}
