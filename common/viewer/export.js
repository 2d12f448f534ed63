// Taking the view away: as one HTML file like this page, and as JSON.

function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Return the view with the reader's choices in it. */
function chosen(view) {
  return { ...view.data, eta: view.eta, ties: view.ties };
}

/** Return JSON that can stand in a script element. */
function embed(value) {
  return JSON.stringify(value).replace(/</g, "\\u003c").replace(/\u2028/g, "\\u2028").replace(/\u2029/g, "\\u2029");
}

/** Return this page with the view as its data: it opens from a file, without a server. */
function pageOf(view) {
  const part = (id) => document.getElementById(id).textContent;
  const close = "</" + "script>";
  return [
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<title>SFT-GO: token importance</title>\n<link rel="icon" href="data:,">',
    `<style id="viewer-style">${part("viewer-style")}</style>\n</head>\n<body>\n<div id="app"></div>`,
    `<script type="application/json" id="viewer-data">${embed(chosen(view))}${close}`,
    `<script id="viewer-script">${part("viewer-script")}${close}\n</body>\n</html>\n`,
  ].join("\n");
}

function exportHtml(view) {
  download("token-importance.html", "text/html", pageOf(view));
}

/** The JSON is the view, and for each document the groups at the eta of the moment. */
function exportJson(view) {
  const data = chosen(view);
  data.documents = data.documents.map((item) => {
    const groups = {};
    for (const [name, { kind }] of Object.entries(data.columns)) {
      if (kind !== "importance" || !item.scores[name]) continue;
      const { important, threshold } = importantTokens(item.scores[name], item.tokens.supervised, data.eta, data.ties);
      groups[name] = { threshold: Number.isNaN(threshold) ? null : threshold, important };
    }
    return { ...item, groups };
  });
  download("token-importance.json", "application/json", JSON.stringify(data, null, 1));
}
