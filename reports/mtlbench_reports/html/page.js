"use strict";
(() => {
  const rowsOf = (table) => Array.from(table.tBodies[0].rows);

  function order(cell, other, numeric) {
    if (numeric) return Number(cell.dataset.value) - Number(other.dataset.value);
    return cell.textContent.localeCompare(other.textContent, "en", { numeric: true });
  }

  function sort(table, column, head) {
    const numeric = head.classList.contains("number");
    const now = head.getAttribute("aria-sort");
    const falling = now ? now === "ascending" : numeric;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const missing = (row) => numeric && row.cells[column].dataset.value === undefined;
    const sorted = rowsOf(table).sort((a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return order(a.cells[column], b.cells[column], numeric) * (falling ? -1 : 1);
    });
    table.tBodies[0].append(...sorted);
  }

  function sortable(table) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, head));
      head.append(button);
    });
  }

  function filterable(table) {
    const region = table.closest(".wide");
    const bar = document.createElement("label");
    const input = document.createElement("input");
    const told = document.createElement("output");
    const texts = new Map(rowsOf(table).map((row) => [row, row.textContent.toLowerCase()]));
    bar.className = "filter";
    input.type = "search";
    input.placeholder = "words that a row must have";
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of texts) {
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      told.textContent = words.length ? `${shown} of ${texts.size} rows` : "";
    };
    input.addEventListener("input", filter);
    table.addEventListener("show-all", () => {
      input.value = "";
      filter();
    });
    bar.append(`Filter ${region.getAttribute("aria-label").toLowerCase()}`, input, told);
    region.before(bar);
  }

  function reveal() {
    const target = document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.hidden) target.closest("table").dispatchEvent(new Event("show-all"));
    if (target.tagName === "DETAILS") target.open = true;
    target.scrollIntoView({ block: "start" });
  }

  for (const table of document.querySelectorAll("table.data")) {
    sortable(table);
    filterable(table);
  }
  window.addEventListener("hashchange", reveal);
  reveal();
})();
