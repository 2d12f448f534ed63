"use strict";
/* Tables sort by their heads; curves are read by pointer or arrow keys. Without this script the report reads the same. */

const tip = document.querySelector("#tip");

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${Math.max(8, y - box.height - 10)}px`;
}

function hideTip() {
  tip.hidden = true;
}

/* Sorting. The first click puts the largest number (the first name) on top; cells without a number stay last. */
function sortKey(row, index) {
  const given = row.cells[index].dataset.sort;
  return given === undefined ? null : JSON.parse(given);
}

function sortBy(head) {
  const table = head.closest("table");
  const body = table.tBodies[0];
  const index = head.cellIndex;
  const rows = [...body.rows];
  const isText = rows.some((row) => typeof sortKey(row, index) === "string");
  const before = head.getAttribute("aria-sort");
  const order = before === "none" ? (isText ? "ascending" : "descending") : before === "ascending" ? "descending" : "ascending";
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const compare = (a, b) => (isText ? String(a).localeCompare(String(b), "en", { numeric: true }) : a - b);
  rows.sort((first, second) => {
    const [a, b] = [sortKey(first, index), sortKey(second, index)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * compare(a, b);
  });
  body.append(...rows);
}

for (const head of document.querySelectorAll("table.data thead th")) {
  head.querySelector("button").addEventListener("click", () => sortBy(head));
}

/* Marks say their value at once, where the browser's own tooltip waits. */
for (const title of document.querySelectorAll("svg .mark > title, svg rect > title")) {
  const mark = title.parentElement;
  mark.dataset.tip = title.textContent;
  title.remove();
  mark.setAttribute("aria-label", mark.dataset.tip);
  mark.addEventListener("pointermove", (event) => showTip(mark.dataset.tip, event.clientX, event.clientY));
  mark.addEventListener("pointerleave", hideTip);
}

/* Curves. */
function readCurves(svg) {
  const data = JSON.parse(svg.dataset.curves);
  const cross = svg.querySelector(".cross");
  let at = data.steps.length - 1;
  const first = data.steps[0];
  const last = data.steps.at(-1);
  function show(index) {
    at = Math.max(0, Math.min(index, data.steps.length - 1));
    const share = last === first ? 0 : (data.steps[at] - first) / (last - first);
    const percent = data.left + share * (data.right - data.left);
    cross.setAttribute("x1", `${percent}%`);
    cross.setAttribute("x2", `${percent}%`);
    svg.classList.add("read");
    const lines = data.lines.map(([name, mean, sd]) => {
      const value = mean[at] === null ? "NaN" : mean[at].toFixed(4);
      return `${name} ${value}${sd[at] === null ? "" : ` ± ${sd[at].toFixed(4)}`}`;
    });
    if (data.worst.length && data.worst[at] !== null) lines.push(`important is the worst in ${Math.round(100 * data.worst[at])} %`);
    const box = svg.getBoundingClientRect();
    showTip([`step ${data.steps[at]}`, ...lines].join("\n"), box.left + (box.width * percent) / 100, box.top + 60);
  }
  function leave() {
    svg.classList.remove("read");
    hideTip();
  }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const percent = (100 * (event.clientX - box.left)) / box.width;
    const step = first + ((percent - data.left) / (data.right - data.left)) * (last - first);
    let nearest = 0;
    data.steps.forEach((value, index) => {
      if (Math.abs(value - step) < Math.abs(data.steps[nearest] - step)) nearest = index;
    });
    show(nearest);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") leave();
    if (move === undefined) return;
    event.preventDefault();
    show(at + move);
  });
}

for (const svg of document.querySelectorAll("svg[data-curves]")) readCurves(svg);
