// A click on a column's head sorts its table by that column, the next one the other way round; dashes stay last.
for (const head of document.querySelectorAll("th")) {
  const table = head.closest("table"), body = table.tBodies[0];
  if (!body || body.rows.length < 3 || !head.textContent.trim()) continue;
  const value = (row) => row.cells[head.cellIndex].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [a, b].map((text) => parseFloat(text.replace(/,/g, "")));
    return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sort = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return (x === "–") - (y === "–") || (down ? -1 : 1) * compare(x, y);
    });
    body.append(...rows);
  };
  head.tabIndex = 0;
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
