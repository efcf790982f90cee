// Buttons: blocks and heads, queries that are no places, words, and what the heat shows. They are
// made once, and only their pictures and numbers change.
function button(text, choose) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", choose);
  return made;
}

function tile(parent, value, lines, title, choose) {
  const made = button("", choose);
  made.append(document.createElement("canvas"));
  lines.forEach((line, index) => {
    const part = document.createElement(index ? "span" : "b");
    part.textContent = line;
    made.append(part);
  });
  made.title = title;
  made.dataset.value = value;
  parent.append(made);
}

function makeBlocks() {
  element("blocks").replaceChildren();
  const alike = blocks.every((block) => block.kind === blocks[0].kind);
  blocks.forEach((block, index) => {
    const lines = [block.label, times(block.grid)];
    if (block.words.length || (!alike && block.name !== "rollout")) lines.push(kindOf(block));
    if (block.gamma !== null) lines.push(`gamma ${block.gamma.toFixed(2)}`);
    const title = [block.name || block.label, ...lines.slice(1)].join(", ");
    tile(element("blocks"), index, lines, title, () => choose({ block: index }));
  });
}

function makeHeads() {
  const block = blocks[state.block], number = (x) => x.toFixed(2);
  element("heads").replaceChildren();
  for (const head of [...(block.num_heads > 1 ? [MEAN] : []), ...Array(block.num_heads).keys()]) {
    const lines = head === MEAN ? ["mean"] : [`head ${head + 1}`,
      `entropy ${number(block.entropy[head])}`,
      ...block.distance.slice(head, head + 1).map((distance) => `distance ${number(distance)}`)];
    tile(element("heads"), head, lines, lines.join(", "), () => choose({ head }));
  }
  tellHeads(block);
  makeQueries(block);
  makeWords(block);
}

// Queries that are no places: characters, or prefix tokens.
function makeQueries(block) {
  const reads = block.rows === "characters";
  const names = reads ? shown.characters
    : [...Array(block.num_prefix_tokens).keys()].map((index) =>
      `look from the ${queryName(block, index)}${index ? "" : " (C)"}`);
  element("queries").replaceChildren(...names.map((name, index) =>
    button(name, () => choose(reads ? { character: index } : { prefix: index }))));
}

// A bar for each word: as long as what the position that is pointed at gives to it.
function makeWords(block) {
  element("words").replaceChildren(...block.words.map((word, index) => {
    const made = button("", () => choose({ word: index }));
    for (const text of [word, ""]) {
      const part = document.createElement("span");
      part.textContent = text;
      made.append(part);
    }
    made.title = word;
    return made;
  }));
}

function updateWords(block) {
  const chosen = [...element("words").children];
  if (!chosen.length) return;
  const shares = wordShares(state.block, state.head), most = Math.max(...shares, 1e-30);
  chosen.forEach((made, index) => {
    made.style.setProperty("--share", `${(100 * shares[index]) / most}%`);
    made.lastChild.textContent = ` ${percent(shares[index])}`;
    made.setAttribute("aria-pressed", row(block) === index);
  });
}

// Attention, or the heat for one of the likeliest classes.
function makeTargets() {
  const names = shown.targets.length ? ["attention", ...shown.targets.map((name) => `for ${name}`)] : [];
  element("targets").replaceChildren(...names.map((name, index) => {
    const made = button(name, () => choose({ target: index ? index - 1 : null }));
    made.title = name;
    return made;
  }));
}

function updateChoices() {
  const block = blocks[state.block];
  [...element("queries").children].forEach((made, index) => made.setAttribute("aria-pressed",
    state.target === null && !onGrid(block) && row(block) === index));
  [...element("targets").children].forEach((made, index) =>
    made.setAttribute("aria-pressed", state.target === (index ? index - 1 : null)));
  for (const id of ["headings", "heads", "queries", "words"]) element(id).hidden = state.target !== null;
  updateWords(block);
}
