// Making elements, and the few sentences that several files need.

/** Return an element. `attributes` that are functions are event listeners; `children` are elements or texts. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a label with its control. */
function labelled(text, control, className = "field") {
  return make("label", { class: className }, make("span", { text }), control);
}

/** Return a select with [value, text] options. */
function choose(options, chosen, onchange, attributes = {}) {
  const select = make("select", { ...attributes, change: () => onchange(select.value) });
  for (const [value, text] of options) select.append(make("option", { value, selected: value === chosen, text }));
  return select;
}

/** Return a number as a reader wants it: at most `digits` significant ones. */
function short(value, digits = 4) {
  if (value === null || Number.isNaN(value)) return "none";
  return String(Number(value.toPrecision(digits)));
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

/** Return a token's text so that white space can be seen. */
function visible(text) {
  return text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·") || "(no characters)";
}

const KINDS = {
  importance: "importance: higher matters more",
  reference_loss: "reference loss in nats: not an importance until the trainer subtracts it",
  loss: "loss in nats: higher is less expected",
  change: "change of the loss in nats: below 0 the token has gained",
};
