// What is said beside the pictures.
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const times = (grid) => grid.join("\u00a0×\u00a0"); // never broken at the end of a line
const placed = ([y, x]) => `row ${y + 1}, column ${x + 1}`;
const largest = (values) => values.indexOf(Math.max(...values));

function queryName(block, index) {
  if (block.rows === "characters") return `character ${index + 1}, “${shown.characters[index]}”`;
  return index === 0 ? "class token" : `register ${index}`;
}

function topPlace(block, values) {
  const at = largest(values), wide = block.drawn[1];
  return placed([Math.floor(at / wide), at % wide]);
}

function reading(block) {
  if (state.target !== null) {
    const values = heat(state.block, state.head);
    const target = `“${shown.targets[state.target]}”`;
    return block.words.length ? `For ${target} there is no heat in ${block.label}: it has words.`
      : `What ${target} rests on in ${block.label}, by the gradient of its score: most on `
        + `${topPlace(block, values)}. All positions and heads are taken together.`;
  }
  const { values, onPrefix } = attention(state.block, state.head);
  if (block.rows === "tokens") {
    const shares = wordShares(state.block, state.head), at = largest(shares);
    return `“${block.words[row(block)]}” gives most, ${percent(Math.max(...values))}, to `
      + `${topPlace(block, values)} (evenly spread, each would have ${percent(1 / values.length)}). `
      + `To ${placed(cell(block.grid))} “${block.words[at]}” gives most, ${percent(shares[at])}.`;
  }
  if (block.rows === "words") {
    const shares = wordShares(state.block, state.head), at = largest(shares);
    return `From ${placed(cell(block.grid))}: most, ${percent(shares[at])}, goes to `
      + `“${block.words[at]}” (evenly spread, each would have ${percent(1 / shares.length)}). `
      + `“${block.words[row(block)]}” is seen most from ${topPlace(block, values)}, `
      + `${percent(Math.max(...values))}.`;
  }
  const from = onGrid(block) ? placed(cell(block.grid)) : queryName(block, row(block));
  return `From ${from}: most, ${percent(Math.max(...values))}, goes to ${topPlace(block, values)} `
    + `(evenly spread, each would have ${percent(1 / values.length)})`
    + (block.num_prefix_tokens ? `; ${percent(onPrefix)} to the ${queryName(block, 0)}.` : ".");
}

function read() {
  const block = blocks[state.block];
  element("reading").textContent = reading(block);
  const from = onGrid(block) ? placed(cell(block.grid)) : queryName(block, row(block));
  element("stage").setAttribute("aria-label", state.target === null
    ? `${caption(shown)}. Seen from ${from}.`
    : `${caption(shown)}. Heat for ${shown.targets[state.target]}.`);
}

function caption(image) {
  if (!image.guesses.length) return image.label === null ? image.name : `${image.name}: ${image.label}`;
  const [name, share] = image.guesses[0];
  const verdict = image.label === null ? "" : image.label === name ? " ✓" : ` ✗ it is ${image.label}`;
  return `${image.name}: ${name}, ${percent(share)}${verdict}`;
}

const isWrong = (image) =>
  image.label !== null && image.guesses.length > 0 && image.label !== image.guesses[0][0];

function tellCaption(image) {
  const strong = document.createElement("strong");
  if (!image.guesses.length) {
    strong.textContent = image.name;
    element("caption").replaceChildren(strong, image.label === null ? "" : `: ${image.label}`);
    return;
  }
  const [name, share] = image.guesses[0], wrong = isWrong(image);
  strong.textContent = `${name}, ${percent(share)}`;
  strong.className = image.label === null ? "" : wrong ? "wrong" : "right";
  const others = image.guesses.slice(1).map(([n, p]) => `${n} (${percent(p)})`).join(", ");
  element("caption").replaceChildren(strong,
    image.label === null ? "" : wrong ? ` ✗ it is ${image.label}` : " ✓", others && `; or ${others}`);
}

const kindOf = (block) => block.kind + ({
  words: ` to ${block.words.length} words`,
  tokens: ` of ${block.words.length} tokens`,
}[block.rows] ?? "");

function tellHeads(block) {
  const parts = [`of ${block.name || block.label}`, kindOf(block), "entropy in nats"];
  if (block.distance.length) parts.push(`distance in steps of its ${times(block.full)} grid`);
  element("headsof").textContent = `${parts.join("; ")}, over all images`;
}

// What the page leaves out, said once.
function tellNotes() {
  const notes = [], grids = new Map();
  for (const block of blocks.filter((b) => times(b.full) !== times(b.grid))) {
    const change = `${times(block.full)} to ${times(block.grid)}`;
    grids.set(change, [...(grids.get(change) ?? []), block.label]);
  }
  if (grids.size) {
    const which = [...grids].map(([change, names]) =>
      (names.length === blocks.length ? change : `${change} (${names.join(", ")})`));
    notes.push(`To keep the page small, weights are pooled from ${which.join("; ")} positions.`
      + (content.crowded && images.length > 1 ? " A page of fewer images has finer ones." : ""));
  }
  if (content.without_grid.length) {
    notes.push(`Not shown, because their tokens lie on no grid: ${content.without_grid.join(", ")}.`);
  }
  element("notes").replaceChildren(...notes.map((text) => {
    const note = document.createElement("p");
    note.textContent = text;
    return note;
  }));
}
