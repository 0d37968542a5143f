"use strict";
document.documentElement.classList.add("live");

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    const numbers = head.dataset.kind === "number";
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const up = now ? now === "descending" : !numbers;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const of = (row) => row.cells[column].dataset.by;
      const order = (one, other) => {
        const [a, b] = [of(one), of(other)];
        if (a === "" || b === "") return (a === "") - (b === "");
        const apart = numbers ? a - b : a.localeCompare(b, "en");
        return up ? apart : -apart;
      };
      rows.sort(order);
      body.append(...rows);
    });
  });
}

const find = document.getElementById("find");
const found = document.getElementById("found");
find.addEventListener("input", () => {
  const wanted = find.value.trim().toLowerCase();
  const rows = [...document.getElementById("table").tBodies[0].rows];
  // the name, the verdict and the line in words: numbers have words beside them, too
  const words = (row) => [row.cells[0], row.cells[1], row.cells[row.cells.length - 1]].map((cell) => cell.textContent).join("\n");
  rows.forEach((row) => { row.hidden = !words(row).toLowerCase().includes(wanted); });
  found.textContent = wanted ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
});

const choose = document.getElementById("choose");
if (choose) {
  const told = document.getElementById("told");
  const every = [...document.querySelectorAll(".example")];
  const show = (id) => {
    every.forEach((one) => { one.hidden = one.id !== id; one.open = one.id === id; });
    choose.value = id;
    told.textContent = "";
  };
  const step = (by) => {
    const count = choose.options.length;
    show(choose.options[(choose.selectedIndex + by + count) % count].value);
  };
  const follow = () => {
    const id = location.hash.slice(1);
    if (!every.some((one) => one.id === id)) return;
    show(id);
    document.getElementById("texts").scrollIntoView();
  };
  choose.addEventListener("change", () => show(choose.value));
  document.getElementById("before").addEventListener("click", () => step(-1));
  document.getElementById("after").addEventListener("click", () => step(1));
  document.getElementById("examples").addEventListener("click", (event) => {
    const token = event.target.closest(".tokens i");
    if (!token) return;
    document.querySelectorAll(".asked").forEach((other) => other.classList.remove("asked"));
    token.classList.add("asked");
    told.textContent = `“${token.textContent.trim() || "␣"}” ${token.title.startsWith("does") ? token.title : `z = ${token.title}`}`;
  });
  addEventListener("hashchange", follow);
  show(choose.value);
  follow();
}
