// Tables under the panels: what a view says of all its documents, such as the tokens that gained most.

/** Return the view's tables as sections. A row with `at`, [document, token], leads there. */
function tablesOf(data, owner) {
  const sections = (data.tables ?? []).filter(({ rows }) => rows.length).map(({ title, note, header, rows }) => {
    const head = header.map((text, index) => make("th", { scope: "col", class: index ? "number" : null, text }));
    const body = rows.map(({ cells, at }) => make("tr", {}, ...cells.map((cell, index) => {
      const text = typeof cell === "number" ? short(cell) : cell ?? "none";
      if (index) return make("td", { class: "number", text });
      const named = at ? make("button", { type: "button", class: "goto", click: () => owner.goTo(...at) }, make("code", { text: visible(text) })) : text;
      return make("th", { scope: "row" }, named);
    })));
    return make("section", { class: "panel table" },
      make("header", {}, make("h2", { text: title }), note ? make("span", { class: "kind", text: note }) : null),
      make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
  });
  return sections.length ? [make("div", { class: "tables" }, ...sections)] : [];
}
