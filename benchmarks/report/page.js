// Tables sort by the column whose heading is clicked; details are open on paper.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (!heading) return;
    const column = heading.cellIndex;
    const up = heading.getAttribute("aria-sort") === "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => parseFloat(row.cells[column].dataset.value);
    const compare = (one, other) => {
      const a = value(one), b = value(other);
      if (isNaN(a) && isNaN(b)) return other.cells[column].textContent.localeCompare(one.cells[column].textContent);
      return isNaN(a) ? (up ? -1 : 1) : isNaN(b) ? (up ? 1 : -1) : b - a;
    };
    const rows = [...body.rows].sort(compare);
    body.append(...(up ? rows.reverse() : rows));
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
