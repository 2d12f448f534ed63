// What the page does when it opens: shows the data that it holds, or the form when it holds none.

function themePicker() {
  const themes = [["auto", "system colours"], ["light", "light"], ["dark", "dark"]];
  return choose(themes, "auto", (value) => {
    document.documentElement.dataset.theme = value;
  }, { id: "theme", "aria-label": "Colours" });
}

function start() {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const main = make("main", { class: "view" });
  const holder = make("div", { class: "input" });
  const about = data?.title ?? "Which tokens matter? Score a text, then move eta.";
  document.getElementById("app").append(
    make("header", { class: "top" },
      make("h1", {}, make("span", { class: "brand", text: "SFT-GO" }), " token importance"),
      make("p", { class: "about", text: about }),
      themePicker()),
    holder, main);
  const view = new View(main);
  if (data !== null) {
    view.show(data);
  } else {
    main.append(make("div", { class: "empty" },
      make("p", { text: "Nothing scored yet." }),
      make("p", { class: "hint", text: "Paste a text above or pick an example. Each token is shaded by its score; at the eta you choose, the important ones are underlined." })));
    new Form(holder, view);
  }
  window.sftGo = { view, quantile, numImportant, importantTokens, ranks, piecesOf, pageOf, embed }; // for the console, and tests
}

start();
