// One grouper's view of one document: its tokens, coloured.

/**
 * Cut a document into pieces to draw: tokens; text that no token covers; and characters that several tokens share,
 * which are drawn once. Returns [{ text, tokens: indices, special }].
 */
function piecesOf(item) {
  const characters = Array.from(item.text); // spans count code points
  const { text, start, end } = item.tokens;
  const pieces = [];
  let covered = 0;
  for (let index = 0; index < start.length; index += 1) {
    if (start[index] === end[index]) {
      pieces.push({ text: text[index], tokens: [index], special: true });
    } else if (start[index] < covered && pieces.length) {
      const last = pieces.findLast((piece) => !piece.special && piece.tokens.length);
      last.tokens.push(index);
      last.text += characters.slice(covered, end[index]).join("");
      covered = Math.max(covered, end[index]);
    } else {
      if (start[index] > covered) {
        pieces.push({ text: characters.slice(covered, start[index]).join(""), tokens: [], special: false });
      }
      pieces.push({ text: characters.slice(start[index], end[index]).join(""), tokens: [index], special: false });
      covered = end[index];
    }
  }
  if (covered < characters.length) {
    pieces.push({ text: characters.slice(covered).join(""), tokens: [], special: false });
  }
  return pieces;
}

class Panel {
  /** `owner` is told of the token that the reader points at: owner.point(index or null, element, panel). */
  constructor(name, { kind, groups_of: groupsOf }, item, owner) {
    this.name = name;
    this.kind = kind;
    this.groupsOf = groupsOf;
    this.item = item;
    this.owner = owner;
    this.scores = item.scores[name];
    this.known = item.tokens.supervised.map((flag, index) => flag && this.scores[index] !== null); // has a value
    this.ranks = ranks(this.scores, this.known);
    this.elements = new Array(this.scores.length);
    this.active = 0;
    this.pieces = piecesOf(item).map((piece) => this.draw(piece));
    this.stats = make("p", { class: "stats", "aria-live": "polite" });
    this.fill = make("span", { class: "share-fill" });
    this.body = make("div", {
      class: "tokens",
      tabindex: "0",
      role: "group",
      dir: "auto",
      "aria-label": `Tokens, scored by ${name}. Left and right arrow keys go from token to token.`,
      pointerover: (event) => this.hover(event),
      pointerleave: () => owner.point(null),
      keydown: (event) => this.key(event),
      blur: () => owner.point(null),
    });
    this.body.append(...this.pieces.map((piece) => piece.element));
    this.element = make(
      "section",
      { class: "panel", "data-grouper": name, "data-kind": kind },
      make("header", {}, make("h2", { text: name }), make("span", { class: "kind", text: KINDS[kind] })),
      this.stats,
      make("div", { class: "share", "aria-hidden": "true" }, this.fill),
      this.body,
    );
  }

  draw(piece) {
    // A line break is drawn where it stands, by style alone: what is copied stays the text.
    const lines = piece.text.split("\n");
    const broken = lines.flatMap((line, index) => (index ? [make("span", { class: "break", text: "\n" }), line] : [line]));
    const element = make("span", {}, ...broken.filter((part) => part !== ""));
    if (piece.tokens.length) {
      element.className = "token";
      element.dataset.index = piece.tokens[0];
      if (piece.special) element.classList.add("special");
      if (piece.tokens.length > 1) element.classList.add("shared");
      if (!piece.tokens.some((index) => this.item.tokens.supervised[index])) element.classList.add("prompt");
      for (const index of piece.tokens) this.elements[index] = element;
    }
    if (!piece.tokens.length) element.className = "gap";
    return { ...piece, element };
  }

  /** Shade every token; once for each choice of what the shade means. */
  shade(by) {
    const change = this.kind === "change";
    const values = change ? changeShades(this.scores, this.known, by) : shades(this.scores, this.known, by);
    for (const { tokens, element } of this.pieces) {
      const known = tokens.filter((index) => values[index] !== null);
      if (!known.length) continue;
      element.style.setProperty("--shade", Math.max(...known.map((index) => values[index])).toFixed(3));
      if (change) element.classList.toggle("fell", known.reduce((sum, index) => sum + this.scores[index], 0) < 0);
    }
  }

  /** Mark the groups at eta: a loss has those of the scores that it is shown with, a reference loss has none. */
  group(eta, ties) {
    const deciding = this.kind === "importance" ? this.scores : this.item.scores[this.groupsOf];
    this.groups = deciding ? importantTokens(deciding, this.item.tokens.supervised, eta, ties) : null;
    if (this.groups) {
      const { important } = this.groups;
      for (const { tokens, element } of this.pieces) {
        if (tokens.length) element.classList.toggle("important", tokens.some((index) => important[index]));
      }
    }
    if (this.kind === "reference_loss") this.stats.textContent = "no groups: see the kind";
    else if (this.kind === "importance") this.sayGroups(eta, ties);
    else this.sayLosses();
  }

  /** Say what the groups of a document cost, or gained. */
  sayLosses() {
    const none = new Array(this.scores.length).fill(false);
    const { important, unimportant, share } = lossByGroup(this.scores, this.known, this.groups?.important ?? none);
    const parts = [`mean ${short(mean(this.scores, this.known))}`];
    if (this.groups) parts.push(`important ${short(important)}`, `unimportant ${short(unimportant)}`);
    const hasShare = this.kind === "loss" && this.groups && share !== null;
    if (hasShare) parts.push(`${percent(share)} of the loss is of important tokens`);
    this.fill.style.setProperty("inline-size", percent(hasShare ? share : 0));
    this.stats.textContent = parts.join(" · ");
  }

  sayGroups(eta, ties) {
    const { threshold, count, total } = this.groups;
    const share = total ? count / total : 0;
    this.fill.style.setProperty("inline-size", percent(share));
    this.stats.replaceChildren(
      make("strong", { text: `${count} of ${total}` }),
      ` supervised tokens important (${percent(share)}), threshold ${short(threshold)}`,
      share < (1 - eta) / 2 && ties === "threshold" ? "; many tie at it, and ties are unimportant" : "",
    );
    this.stats.dataset.count = count;
  }

  /** Return the nearest token on one side that is shown; this one when there is none. */
  next(step) {
    let index = this.active + step;
    while (this.elements[index] && !this.elements[index].getClientRects().length) index += step;
    return this.elements[index] ? index : this.active;
  }

  hover(event) {
    const element = event.target.closest(".token");
    if (!element) return;
    this.active = Number(element.dataset.index);
    this.owner.point(this.active, element, this);
  }

  key(event) {
    const last = this.elements.length - 1;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") return this.owner.point(null);
    if (event.key === "Home") this.active = 0;
    else if (event.key === "End") this.active = last;
    else if (step) this.active = this.next(step);
    else return undefined;
    event.preventDefault();
    const element = this.elements[this.active];
    element.scrollIntoView({ block: "nearest" });
    return this.owner.point(this.active, element, this);
  }
}
