// The form of the service's page: what to score, and with which groupers. Talks to the API beside the page.

const EXAMPLES = [
  ["Heart (question and answer)", "How does the heart keep blood moving?",
    "The heart is a muscular pump with four chambers. The right side sends blood to the lungs to take up oxygen; the left side sends it on to the rest of the body. Valves open and close with each beat, so that blood flows in one direction only.\n\nA resting adult's heart beats about 60 to 100 times a minute."],
  ["Code (question and answer)", "Write a Python function that returns the median of a list.",
    "```python\ndef median(values: list[float]) -> float:\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n```\n\nIt sorts a copy, so the list itself stays as it was."],
  ["Recipe (plain text)", null,
    "Rinse the lentils, then simmer them with a bay leaf for 25 minutes. Meanwhile, soften two onions in olive oil, add cumin and a pinch of salt, and stir in the tomatoes. Fold in the lentils and serve with yogurt."],
  ["Several scripts (plain text)", null,
    "Good morning, 早上好, доброе утро, صباح الخير! ☀️ The train leaves at 9:05, le café est déjà ouvert, and the naïve résumé is 1½ pages long 🙂."],
];

class Form {
  constructor(root, view) {
    this.root = root;
    this.view = view;
    this.groupers = [];
    this.prompt = make("textarea", { id: "prompt", rows: "2", placeholder: "What the user asks" });
    this.text = make("textarea", { id: "text", rows: "5", placeholder: "Paste a text here" });
    this.key = make("input", { type: "password", id: "key", autocomplete: "off", change: () => this.load() });
    this.keyField = labelled("API key", this.key);
    this.keyField.hidden = true;
    this.boxes = make("fieldset", { class: "groupers" }, make("legend", { text: "groupers, side by side" }));
    this.tokenizers = make("div", {});
    this.button = make("button", { type: "submit", id: "score", class: "main", text: "Score" });
    this.alert = make("p", { class: "alert", role: "alert", hidden: true });
    this.mode = "text";
    this.modes = make("div", { class: "modes", role: "radiogroup", "aria-label": "Kind of input" });
    for (const [value, text] of [["text", "Plain text"], ["messages", "Prompt and response"]]) {
      const radio = make("input", { type: "radio", name: "mode", value, change: () => this.setMode(value) });
      this.modes.append(make("label", {}, radio, make("span", { text })));
    }
    const examples = choose(
      [["", "an example…"], ...EXAMPLES.map(([name], index) => [String(index), name])], "",
      (value) => value !== "" && this.fill(EXAMPLES[Number(value)]), { id: "example", "aria-label": "Fill in an example" },
    );
    this.promptField = labelled("prompt", this.prompt, "field wide");
    this.textLabel = make("span", { text: "text" });
    this.form = make(
      "form", { class: "form", submit: (event) => { event.preventDefault(); this.score(); }, keydown: (event) => this.key_(event) },
      make("div", { class: "row" }, this.modes, examples),
      this.promptField,
      make("label", { class: "field wide" }, this.textLabel, this.text),
      make("div", { class: "row" }, this.boxes, this.tokenizers, this.keyField,
        make("span", { class: "submit" }, make("span", { class: "hint", text: "Ctrl + Enter" }), this.button)),
      this.alert,
    );
    root.append(this.form);
    this.setMode("text");
    this.load();
  }

  key_(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
  }

  setMode(mode) {
    this.mode = mode;
    this.modes.querySelector(`[value=${mode}]`).checked = true;
    this.promptField.hidden = mode === "text";
    this.textLabel.textContent = mode === "text" ? "text" : "response";
  }

  fill([, prompt, text], scroll = true) {
    this.setMode(prompt === null ? "text" : "messages");
    this.prompt.value = prompt ?? "";
    this.text.value = text;
    this.score(scroll);
  }

  /** Score an example as soon as that can be done, so that the page shows what it is for; not over a reader's text. */
  welcome() {
    this.welcomed = true;
    if (!this.text.value && !this.prompt.value) this.fill(EXAMPLES[0], false);
  }

  fail(message) {
    this.alert.textContent = message;
    this.alert.hidden = !message;
  }

  /** Ask the API; the answer as JSON, or an error with a sentence. */
  async ask(path, body, signal) {
    const headers = this.key.value ? { Authorization: `Bearer ${this.key.value}` } : {};
    if (body) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached. Is it running?");
    }
    const answer = await response.json().catch(() => ({ error: `status ${response.status} without a JSON answer` }));
    if (response.ok) return answer;
    if (response.status === 401) this.keyField.hidden = false;
    throw new Error(answer.error ?? `status ${response.status}`);
  }

  /** Read what there is to choose from; again until every grouper is ready. */
  async load() {
    clearTimeout(this.timer);
    try {
      const groupers = await this.ask("v1/groupers");
      const known = JSON.stringify(groupers.map(({ name, tokenizers }) => [name, tokenizers]));
      if (known !== this.known) this.offer(groupers);
      this.known = known;
      if (!this.welcomed && groupers.every((grouper) => grouper.ready)) this.welcome();
      const waiting = groupers.filter((grouper) => !grouper.ready).map((grouper) => grouper.name);
      this.fail(waiting.length ? `Not ready yet, or failed: ${waiting.join(", ")}.` : "");
      if (waiting.length) this.timer = setTimeout(() => this.load(), 1500);
    } catch (error) {
      this.fail(error.message);
      if (this.keyField.hidden) this.timer = setTimeout(() => this.load(), 3000);
    }
  }

  offer(groupers) {
    this.groupers = groupers;
    const names = [...new Set(groupers.flatMap((grouper) => grouper.tokenizers))];
    this.tokenizer = names.includes(this.tokenizer) ? this.tokenizer : names[0];
    const select = choose(names.map((name) => [name, name]), this.tokenizer, (value) => {
      this.tokenizer = value;
      this.offerColumns();
    }, { id: "tokenizer" });
    this.tokenizers.replaceChildren(labelled("tokenizer", select));
    this.offerColumns();
  }

  offerColumns() {
    const columns = this.groupers.filter((grouper) => grouper.tokenizers.includes(this.tokenizer));
    const boxes = columns.map(({ name, kind }, index) => make("label", { title: KINDS[kind] },
      make("input", { type: "checkbox", name: "grouper", value: name, checked: index < 2 }), make("span", { text: name })));
    this.boxes.replaceChildren(this.boxes.firstChild, ...boxes);
  }

  input() {
    if (this.mode === "text") return this.text.value;
    return [{ role: "user", content: this.prompt.value }, { role: "assistant", content: this.text.value }];
  }

  async score(scroll = true) {
    const names = [...this.boxes.querySelectorAll("input:checked")].map((box) => box.value);
    if (!names.length) return this.fail("Choose at least one grouper.");
    if (!this.text.value.trim()) return this.fail(this.mode === "text" ? "Paste a text first." : "The response is empty.");
    this.running?.abort();
    const { signal } = (this.running = new AbortController());
    this.root.classList.add("busy");
    this.button.textContent = "Scoring…";
    try {
      const shared = { inputs: [this.input()], tokenizer: this.tokenizer };
      const answers = await Promise.all(names.map((grouper) => this.ask("v1/score", { ...shared, grouper }, signal)));
      this.fail("");
      this.view.show(viewOf(answers), { keep: true });
      if (scroll && this.view.grid.getBoundingClientRect().top > window.innerHeight / 2) this.view.bar.scrollIntoView();
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error.message);
    } finally {
      if (this.running?.signal === signal) {
        this.root.classList.remove("busy");
        this.button.textContent = "Score";
      }
    }
    return undefined;
  }
}

/** Turn the API's answers, one a grouper, into a view. */
function viewOf(answers) {
  const [first] = answers;
  const documents = first.results.map((result, number) => {
    const column = (name) => result.tokens.map((token) => token[name]);
    const scores = {};
    const notes = result.truncated ? ["cut at the maximum length"] : [];
    for (const answer of answers) {
      const same = answer.results[number];
      scores[answer.grouper] = same.tokens.map((token) => token.score);
      if (same.num_chunks > 1) notes.push(`${answer.grouper}: ${same.num_chunks} chunks`);
    }
    const tokens = Object.fromEntries(["id", "text", "start", "end", "supervised"].map((name) => [name, column(name)]));
    return { id: "", text: result.text, notes, tokens, scores };
  });
  const columns = Object.fromEntries(answers.map(({ grouper, kind }) => [grouper, { kind }]));
  return { title: `tokenizer ${first.tokenizer}`, columns, documents };
}
