// All marks of a trial belong together: hovering one shows its values, a click leads to its row.
"use strict";
(() => {
  document.documentElement.classList.add("js");
  const tip = document.body.appendChild(document.createElement("div"));
  tip.id = "tip";
  const table = document.querySelector("table.trials");
  const heads = table ? [...table.tHead.rows[0].cells] : [];
  const names = heads.map((cell) => cell.textContent);
  const rows = new Map();
  if (table) for (const row of table.tBodies[0].rows) rows.set(row.dataset.n, row);

  const text = (mark) => {
    const row = rows.get(mark.dataset.n);
    if (!row) return "trial " + mark.dataset.n;
    const cell = (name) => row.cells[names.indexOf(name)]?.textContent ?? "";
    const lines = [`trial ${mark.dataset.n}: ${cell("state")}`, `fitness ${cell("fitness")}`];
    const gene = mark.ownerSVGElement?.dataset.k;
    if (gene) lines.push(`${gene} ${cell(gene)}`);
    if (cell("reason")) lines.push(cell("reason"));
    return lines.join("\n");
  };
  let hot = null;
  const light = (number) => {
    if (number === hot) return;
    document.querySelectorAll(".hot").forEach((mark) => mark.classList.remove("hot"));
    hot = number;
    if (number === null) return;
    document.querySelectorAll(`[data-n="${number}"]`).forEach((mark) => mark.classList.add("hot"));
  };
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest?.("svg [data-n]");
    tip.style.display = mark ? "block" : "none";
    light(mark ? mark.dataset.n : null);
    if (!mark) return;
    tip.textContent = text(mark);
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
  });
  document.addEventListener("click", (event) => {
    const mark = event.target.closest?.("svg [data-n]");
    if (mark) rows.get(mark.dataset.n)?.scrollIntoView({ block: "center" });
  });
  if (!table) return;

  const value = (row, column) => row.cells[column].textContent;
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const sign = head.dataset.sorted === "1" ? -1 : 1;
    heads.forEach((other) => delete other.dataset.sorted);
    head.dataset.sorted = sign;
    const sorted = [...rows.values()].map((row) => [value(row, column), row]).sort(([a], [b]) => {
      if (a === "–" || b === "–" || !a || !b) return (a === "–" || !a) - (b === "–" || !b);
      const [x, y] = [Number(a), Number(b)];
      return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
    });
    table.tBodies[0].append(...sorted.map(([, row]) => row));
  }));
  document.querySelector(".filter")?.addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows.values()) {
      const whole = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => whole.includes(word));
    }
  });
})();
