"use strict";
// A click on a column's title sorts the table by it; a second click reverses the order. Cells without a number stay last.
for (const title of document.querySelectorAll("th")) {
  title.firstElementChild.onclick = () => {
    const column = title.cellIndex, sign = title.ariaSort === "ascending" ? -1 : 1;
    const body = title.closest("table").tBodies[0];
    const text = row => row.cells[column].textContent;
    const number = row => parseFloat(text(row).replace(/^<|,/g, ""));
    const compare = (a, b) => {
      if (!title.classList.contains("n")) return sign * text(a).localeCompare(text(b), "en", { numeric: true });
      const [x, y] = [number(a), number(b)];
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
    };
    for (const other of title.parentElement.cells) other.ariaSort = null;
    title.ariaSort = sign > 0 ? "ascending" : "descending";
    body.append(...[...body.rows].sort(compare));
  };
}
