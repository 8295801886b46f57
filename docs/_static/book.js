"use strict";
// The ledger: shows the claims that all of its filters let through.
{
  const fields = [...document.querySelectorAll("[data-filter]")];
  const rows = [...document.querySelectorAll(".ledger tbody tr")];
  const filter = () => {
    const wanted = Object.fromEntries(fields.map((field) => [field.dataset.filter, field.value]));
    const words = wanted.words.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const chosen = ["paper", "verdict", "source"].every((name) => !wanted[name] || row.dataset[name] === wanted[name]);
      const text = row.textContent.toLowerCase();
      row.hidden = !chosen || !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.querySelector(".ledger-count").textContent = `${shown} of ${rows.length} claims`;
  };
  for (const field of fields) for (const change of ["input", "change"]) field.addEventListener(change, filter);
  document.querySelector(".ledger-filters").addEventListener("submit", (event) => event.preventDefault());
  filter(); // a browser may bring back what was chosen before
}
