// From scores to groups: the same rule as common/thresholds.py, bit for bit (a test compares them).

/** Return the eta-quantile of sorted values, linear, in the order of operations that numpy uses. */
function quantile(sorted, eta) {
  const place = eta * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  const t = place - below;
  const difference = sorted[above] - sorted[below];
  return t >= 0.5 ? sorted[above] - difference * (1 - t) : sorted[below] + difference * t;
}

/** Return ceil((1 - eta) * count), with eta as the decimal number that it is written as. */
function numImportant(eta, count) {
  const [mantissa, exponent = "0"] = String(eta).split("e");
  const [whole, fraction = ""] = mantissa.split(".");
  const scale = 10n ** BigInt(fraction.length - Number(exponent));
  return count - Number((BigInt(whole + fraction) * BigInt(count)) / scale);
}

/**
 * Split supervised tokens into important and unimportant ones.
 * scores: numbers; supervised: booleans; eta in [0, 1); ties: "threshold" or "rank".
 * Returns { important: booleans, threshold: number or NaN, count, total }.
 */
function importantTokens(scores, supervised, eta, ties) {
  const positions = [];
  supervised.forEach((flag, index) => flag && positions.push(index));
  const important = new Array(scores.length).fill(false);
  if (positions.length === 0) return { important, threshold: NaN, count: 0, total: 0 };
  const values = Float64Array.from(positions, (index) => scores[index]);
  const threshold = quantile(values.slice().sort(), eta);
  if (ties === "rank") {
    const order = positions.slice().sort((a, b) => scores[b] - scores[a] || a - b);
    for (const index of order.slice(0, numImportant(eta, positions.length))) important[index] = true;
  } else {
    for (const index of positions) important[index] = scores[index] > threshold;
  }
  return { important, threshold, count: important.filter(Boolean).length, total: positions.length };
}

/** Return for each supervised token the share of the others that score lower (ties count half); null for the others. */
function ranks(scores, supervised) {
  const order = [];
  supervised.forEach((flag, index) => flag && order.push(index));
  order.sort((a, b) => scores[a] - scores[b]);
  const result = new Array(scores.length).fill(null);
  for (let start = 0; start < order.length; ) {
    let stop = start;
    while (stop < order.length && scores[order[stop]] === scores[order[start]]) stop += 1;
    const middle = (start + stop - 1) / 2;
    const share = order.length > 1 ? middle / (order.length - 1) : 0.5;
    for (let place = start; place < stop; place += 1) result[order[place]] = share;
    start = stop;
  }
  return result;
}

/** Return how strongly each supervised token is shaded, in [0, 1]: by rank, or by value between the extremes. */
function shades(scores, supervised, by) {
  if (by === "rank") return ranks(scores, supervised);
  const values = scores.filter((_, index) => supervised[index]);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const width = high - low;
  return scores.map((score, index) => (supervised[index] ? (width > 0 ? (score - low) / width : 0.5) : null));
}

/**
 * Return how strongly changes are shaded, in [0, 1]: the rank of their sizes, or their sizes, both from no change on.
 * scores: numbers or null, where there is none.
 */
function changeShades(scores, known, by) {
  const sizes = scores.map((score) => Math.abs(score));
  const places = ranks(sizes, known);
  const widest = sizes.reduce((a, b, index) => (known[index] ? Math.max(a, b) : a), 0);
  return scores.map((score, index) => {
    if (!known[index]) return null;
    if (by === "rank") return score === 0 ? 0 : places[index];
    return widest > 0 ? sizes[index] / widest : 0;
  });
}

/** Return { important, unimportant, share }: the groups' mean losses, and the important one's share of the summed loss. */
function lossByGroup(scores, known, important) {
  const sums = { inside: 0, all: 0, numInside: 0, num: 0 };
  scores.forEach((score, index) => {
    if (!known[index]) return;
    sums.all += score;
    sums.num += 1;
    if (!important[index]) return;
    sums.inside += score;
    sums.numInside += 1;
  });
  return {
    important: sums.numInside ? sums.inside / sums.numInside : null,
    unimportant: sums.num > sums.numInside ? (sums.all - sums.inside) / (sums.num - sums.numInside) : null,
    share: sums.all > 0 ? sums.inside / sums.all : null,
  };
}

/** Return the mean of the known scores, or null. */
function mean(scores, known) {
  const values = scores.filter((_, index) => known[index]);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}
