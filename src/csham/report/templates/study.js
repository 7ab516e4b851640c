"use strict";
// Everything here rearranges what the page holds; the page can be read without it.
(() => {
  const value = (cell) => {
    const given = cell.dataset.value;
    return given === undefined ? cell.textContent.trim() : given === "" ? null : cell.classList.contains("num") ? Number(given) : given;
  };

  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));

  function sort(table, head, direction) {
    const column = [...head.parentElement.children].indexOf(head);
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [value(row.cells[column]), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
  }

  for (const button of document.querySelectorAll("table.sortable th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const first = head.classList.contains("num") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      sort(head.closest("table"), head, head.getAttribute("aria-sort") === first ? second : first);
    });
  }

  const source = document.getElementById("per-class-data");
  const choice = document.getElementById("per-class-network");
  if (source && choice) {
    const data = JSON.parse(source.textContent);
    const table = document.getElementById("per-class-table");
    const number = (x, digits = 1) => x.toFixed(digits).replace("-", "−");
    const signed = (x) => (x > 0 ? "+" : "") + number(x);

    const cell = (row, text, given, kind = "td") => {
      const made = document.createElement(kind);
      made.textContent = text;
      if (kind === "th") made.scope = "row";
      else made.className = "num";
      made.dataset.value = given ?? "";
      row.append(made);
    };

    const bar = (row, difference, sd, reach) => {
      const space = "http://www.w3.org/2000/svg";
      const picture = document.createElementNS(space, "svg");
      picture.setAttribute("viewBox", "-100 -6 200 12");
      picture.setAttribute("preserveAspectRatio", "none");
      picture.setAttribute("aria-hidden", "true"); // the cells before it say the numbers
      const box = (x, y, width, height, fill, opacity) => {
        const made = document.createElementNS(space, "rect");
        for (const [name, given] of Object.entries({ x, y, width, height, opacity })) made.setAttribute(name, given);
        made.style.fill = fill;
        picture.append(made);
      };
      const at = (x) => (97 * x) / reach;
      box(Math.min(0, at(difference)), -4, Math.abs(at(difference)), 8, difference < 0 ? "var(--c1)" : "var(--c0)", 1);
      box(at(difference - sd), -0.75, at(2 * sd), 1.5, "var(--ink)", 0.7);
      box(-0.4, -6, 0.8, 12, "var(--muted)", 1);
      const made = document.createElement("td");
      made.className = "bar";
      made.dataset.value = difference;
      made.append(picture);
      row.append(made);
    };

    const show = () => {
      const one = data.networks[Number(choice.value)];
      const reach = Math.max(1, ...one.rows.map(({ difference, sd }) => Math.abs(difference) + (sd ?? 0)));
      table.tBodies[0].replaceChildren(
        ...one.rows.map((found) => {
          const row = document.createElement("tr");
          cell(row, found.name, found.name, "th");
          cell(row, number(found.plain), found.plain);
          cell(row, number(found.network), found.network);
          cell(row, signed(found.difference), found.difference);
          cell(row, found.sd === null ? "–" : number(found.sd), found.sd);
          cell(row, number(found.images, Number.isInteger(found.images) ? 0 : 1), found.images);
          bar(row, found.difference, found.sd ?? 0, reach);
          return row;
        }),
      );
      document.getElementById("per-class-caption").textContent = one.caption;
      const sorted = table.querySelector("th[aria-sort]");
      if (sorted) sort(table, sorted, sorted.getAttribute("aria-sort"));
    };
    choice.addEventListener("change", show);
    show();
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text); // a page from disk may not write the clipboard everywhere
        button.textContent = "Selected";
      }
    });
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
})();
