"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const { blocks, images } = content;
const element = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const colours = bytes(content.colours);
const MEAN = -1;

// What is asked for. The query is kept as a place on the image (0..1), so that it stays where it is
// when blocks of other grids are chosen; a prefix token has no place, and a reader's query is one of
// the characters that it wrote.
const state = {
  image: 0, block: 0, head: MEAN, x: 0.5, y: 0.5, prefix: null, character: 0, strength: 0.7,
};
// What is drawn: an image's entry, its picture and its weights.
let shown = images[0];
let picture = new Image();
let weights = [];

const sizeOf = (block) => block.grid[0] * block.grid[1];
const rowsOf = (block, image) =>
  block.reads ? image.characters.length : block.num_prefix_tokens + sizeOf(block);

async function unpacked(image) {
  const stream = new Blob([bytes(image.weights)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  let at = 0;
  const floats = () => blocks.map((block) => {
    const part = new Float32Array(buffer, at, block.num_heads * rowsOf(block, image));
    at += part.byteLength;
    return part;
  });
  const [peaks, prefix] = [floats(), floats()];
  return blocks.map((block, index) => {
    const size = block.num_heads * rowsOf(block, image) * sizeOf(block);
    const shares = new Uint8Array(buffer, at, size);
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
  if (block.reads) return Math.min(state.character, shown.characters.length - 1);
  if (state.prefix !== null && state.prefix < block.num_prefix_tokens) return state.prefix;
  const [y, x] = cell(block);
  return block.num_prefix_tokens + y * block.grid[1] + x;
}

// Weights of a query, for a head or the mean of all: { values over the grid, share of prefix }.
function heat(index, head, query = row(blocks[index])) {
  const block = blocks[index], { shares, peaks, prefix } = weights[index];
  const size = sizeOf(block), rows = rowsOf(block, shown), values = new Float64Array(size);
  const heads = head === MEAN ? [...Array(block.num_heads).keys()] : [head];
  let onPrefix = 0;
  for (const h of heads) {
    const at = h * rows + query, peak = peaks[at] / 255 / heads.length;
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
  if (marked && onGrid(block)) mark(context, block, canvas);
}

const onGrid = (block) => !block.reads && row(block) >= block.num_prefix_tokens;

function mark(context, block, canvas) {
  const [y, x] = cell(block), high = canvas.height / block.grid[0], wide = canvas.width / block.grid[1];
  const thin = Math.max(1, canvas.width / 300);
  for (const [colour, line] of [["#000", 3 * thin], ["#3ff", 1.5 * thin]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(x * wide + line / 2, y * high + line / 2, wide - line, high - line);
  }
}
