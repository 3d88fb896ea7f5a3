// The classes with their shares; one is highlighted while it is pointed at or in focus, or once it is tapped.

const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });

export class Legend {
  /** `onHighlight` is called with the index of a class, -1 for none. */
  constructor(list, onHighlight) {
    this.list = list;
    this.onHighlight = onHighlight;
    this.rows = [];
    this.pinned = -1;
    this.shown = -1;
  }

  setClasses(classes) {
    this.pin(-1);
    this.classes = classes;
    this.rows = classes.map((each, index) => this.#row(each, index));
    this.list.replaceChildren(...this.rows.map((row) => row.item));
  }

  #row({ name, colour }, index) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const [swatch, label, share, bar] = ["swatch", "name", "share", "bar"].map((className) => {
      const span = document.createElement("span");
      span.className = className;
      return span;
    });
    swatch.style.backgroundColor = colour;
    bar.style.backgroundColor = colour;
    label.textContent = name;
    Object.assign(button, { type: "button" });
    button.setAttribute("aria-pressed", "false");
    button.append(swatch, label, share, bar);
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.#show(index));
    button.addEventListener("pointerleave", () => this.#show(this.pinned));
    button.addEventListener("focus", () => button.matches(":focus-visible") && this.#show(index));
    button.addEventListener("blur", () => this.#show(this.pinned));
    button.addEventListener("click", () => this.pin(this.pinned === index ? -1 : index));
    item.append(button);
    return { item, button, share, bar };
  }

  #show(index) {
    if (this.shown === index) return;
    this.shown = index;
    this.onHighlight(index);
  }

  pin(index) {
    this.pinned = index;
    this.rows.forEach(({ button }, i) => {
      button.setAttribute("aria-pressed", String(i === index));
    });
    this.#show(index);
  }

  /** Pixels of each class; sorted by them unless `still` is false, as rows that jump can't be read. */
  setCounts(counts, still) {
    const total = counts.reduce((sum, count) => sum + count, 0);
    this.rows.forEach(({ button, share, bar }, i) => {
      share.textContent = percent.format(counts[i] / total);
      bar.style.width = `${(100 * counts[i]) / total}%`;
      button.classList.toggle("is-absent", counts[i] === 0);
    });
    if (!still) return;
    const order = this.rows.map((_, i) => i).sort((a, b) => counts[b] - counts[a] || a - b);
    if (!this.list.contains(document.activeElement)) this.list.append(...order.map((i) => this.rows[i].item));
    return order.filter((i) => counts[i]).map((i) => `${this.classes[i].name} ${percent.format(counts[i] / total)}`);
  }

  /** Marks the class under the pointer, -1 for none. */
  mark(index) {
    this.rows.forEach(({ button }, i) => {
      button.classList.toggle("is-under", i === index);
    });
  }
}
