// The view: one document at a time, one panel a grouper, and the controls that they share. Needs no server.

class View {
  constructor(root) {
    this.root = root;
    this.data = null;
    this.number = 0; // of the document shown
    this.eta = 0.7;
    this.ties = "threshold";
    this.by = "rank";
    this.prompts = true; // show what is not supervised
    this.panels = [];
    this.tooltip = make("div", { class: "tooltip", role: "tooltip", hidden: true });
    this.spoken = make("div", { class: "spoken", "aria-live": "polite" });
    document.body.append(this.tooltip, this.spoken);
    document.addEventListener("scroll", () => this.point(null), { passive: true, capture: true });
  }

  /** Show a view (see common/viewer/page.py); eta and the other choices of the reader stay. */
  show(data, { keep = false } = {}) {
    this.data = data;
    this.number = 0;
    if (!keep) {
      this.eta = data.eta ?? this.eta;
      this.ties = data.ties ?? this.ties;
    }
    this.bar = make("div", { class: "bar" }, ...this.controls());
    this.caption = make("p", { class: "caption" });
    this.grid = make("div", { class: this.prompts ? "panels" : "panels responses-only" });
    this.root.replaceChildren(this.bar, this.legend(), this.caption, this.grid, ...tablesOf(data, this));
    this.open(0);
  }

  /** Show another document. */
  open(number) {
    this.number = number;
    const item = this.data.documents[number];
    this.point(null);
    const columns = Object.entries(this.data.columns).filter(([name]) => item.scores[name]);
    this.panels = columns.map(([name, column]) => new Panel(name, column, item, this));
    this.grid.replaceChildren(...this.panels.map((panel) => panel.element));
    this.grid.style.setProperty("--columns", Math.min(this.panels.length, 3));
    const tokens = item.tokens.supervised;
    const facts = [`${tokens.length} tokens, ${tokens.filter(Boolean).length} supervised`, ...(item.notes ?? [])];
    this.caption.textContent = `${item.id ? `Document ${item.id}: ` : ""}${facts.join(" · ")}`;
    this.update({ shade: true });
  }

  /** Recolour after a choice; no request is made. */
  update({ shade = false } = {}) {
    for (const panel of this.panels) {
      if (shade) panel.shade(this.by);
      panel.group(this.eta, this.ties);
    }
  }

  controls() {
    const range = make("input", {
      type: "range", id: "eta", min: "0", max: "0.99", step: "0.01", value: this.eta, "aria-describedby": "eta-means",
      input: () => this.setEta(range.value, number),
    });
    const number = make("input", {
      type: "number", id: "eta-number", min: "0", max: "0.999", step: "0.01", value: this.eta,
      "aria-label": "eta, as a number", input: () => this.setEta(number.value, range),
    });
    this.means = make("span", { id: "eta-means", class: "hint" });
    const documents = this.data.documents;
    const picker = documents.length > 1 && make(
      "div", { class: "field" }, make("label", { for: "document", text: "document" }),
      choose(
        documents.map((item, index) => [String(index), `${index} · ${item.text.slice(0, 60).replace(/\s+/g, " ")}`]),
        "0", (value) => this.open(Number(value)), { id: "document" },
      ),
    );
    const rules = [["threshold", "above the threshold"], ["rank", "exactly the top share"]];
    const scales = [["rank", "rank in the document"], ["value", "value"]];
    this.explain();
    return [
      picker || null,
      make("div", { class: "field eta" }, make("label", { for: "eta", text: "eta" }), range, number, this.means),
      labelled("ties", choose(rules, this.ties, (value) => { this.ties = value; this.update(); }, { id: "ties" })),
      labelled("shade", choose(scales, this.by, (value) => { this.by = value; this.update({ shade: true }); }, { id: "shade" })),
      labelled("prompts", make("input", { type: "checkbox", id: "prompts", checked: this.prompts, change: (event) => {
        this.prompts = event.target.checked;
        this.grid.classList.toggle("responses-only", !this.prompts);
      } })),
      make("div", { class: "exports" },
        make("button", { type: "button", id: "export-html", text: "Export HTML", click: () => exportHtml(this) }),
        make("button", { type: "button", id: "export-json", text: "Export JSON", click: () => exportJson(this) })),
    ];
  }

  /** Show a token of any document, as if the reader pointed at it. */
  goTo(number, index) {
    const picker = document.getElementById("document");
    if (picker) picker.value = String(number);
    if (number !== this.number) this.open(number);
    const panel = this.panels[this.panels.length - 1];
    panel.active = index;
    panel.elements[index].scrollIntoView({ block: "center" });
    panel.body.focus({ preventScroll: true });
    requestAnimationFrame(() => requestAnimationFrame(() => this.point(index, panel.elements[index], panel)));
  }

  setEta(text, other) {
    const eta = Number(text);
    if (text === "" || !(eta >= 0 && eta < 1)) return;
    other.value = text;
    this.eta = eta;
    this.explain();
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.update());
  }

  explain() {
    this.means.textContent = `the top ${short(100 * (1 - this.eta))}% are important`;
  }

  legend() {
    const steps = [0, 0.25, 0.5, 0.75, 1].map((value) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.setProperty("--shade", value);
      return swatch;
    });
    return make(
      "p", { class: "legend", "aria-label": "Legend" },
      make("span", {}, "low ", ...steps, " high score"),
      make("span", {}, make("span", { class: "token important sample", text: "important" }), " group at this eta"),
      make("span", {}, make("span", { class: "token prompt", text: "grey" }), " not supervised: no group"),
      this.data && Object.values(this.data.columns).some(({ kind }) => kind === "change")
        ? make("span", {}, make("span", { class: "token fell sample", text: "gained" }), " the loss fell ",
          make("span", { class: "token rose sample", text: "lost" }), " it rose")
        : null,
    );
  }

  /** Show the exact values of a token, in every panel; or nothing. */
  point(index, element, panel) {
    for (const one of this.panels) one.body.querySelector(".pointed")?.classList.remove("pointed");
    this.tooltip.hidden = index === null || index === undefined;
    if (this.tooltip.hidden) return;
    for (const one of this.panels) one.elements[index].classList.add("pointed");
    const sharing = panel.pieces.find((piece) => piece.element === element)?.tokens ?? [index];
    this.tooltip.replaceChildren(...sharing.map((one) => this.describe(one)));
    const box = element.getClientRects()[0] ?? element.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.tooltip;
    const left = Math.min(Math.max(8, box.left), document.documentElement.clientWidth - width - 8);
    const under = box.bottom + 8 + height < window.innerHeight;
    this.tooltip.style.setProperty("left", `${left}px`);
    this.tooltip.style.setProperty("top", `${under ? box.bottom + 8 : box.top - height - 8}px`);
    const score = panel.scores[index];
    this.spoken.textContent = `${visible(panel.item.tokens.text[index])}, score ${short(score)}, ${this.membership(panel, index)}`;
  }

  membership(panel, index) {
    if (!panel.item.tokens.supervised[index]) return "not supervised";
    if (!panel.groups) return "no group";
    return panel.groups.important[index] ? "important" : "unimportant";
  }

  describe(index) {
    const { tokens } = this.panels[0].item;
    const rows = this.panels.map((panel) => {
      const rank = panel.ranks[index];
      const place = rank === null ? "" : `higher than ${percent(rank)}`;
      return make("tr", {},
        make("th", { scope: "row", text: panel.name }), make("td", { class: "number", text: short(panel.scores[index], 7) }),
        make("td", { text: place }), make("td", { text: this.membership(panel, index) }));
    });
    return make("div", {},
      make("p", {}, make("code", { text: visible(tokens.text[index]) }),
        ` id ${tokens.id[index]}, token ${index}, characters ${tokens.start[index]} to ${tokens.end[index]}`),
      make("table", {}, ...rows));
  }
}
