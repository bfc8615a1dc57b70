// What the pages do beyond links and forms: several uploads with progress, live progress, and the result's player.
// Each part is in a module of its own and finds nothing to do on pages without it.
import "./uploads.js";
import "./player.js";
import { follow } from "./follow.js";

document.documentElement.classList.add("js");

for (const row of document.querySelectorAll("[data-analysis]")) {
  follow(row.dataset.analysis, row, (analysis) => {
    if ("reload" in row.dataset || analysis.status !== "canceled") location.reload();
    else row.remove();
  });
}
