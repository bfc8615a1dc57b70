// What the pages do beyond links, forms and what htmx reads from their attributes: sending several files with progress,
// the result's player, times of this place, and the link to share.
import "./uploads.js";
import "./player.js";

document.documentElement.classList.add("js");

const language = document.documentElement.lang;
const localize = (root) => {
  for (const time of root.querySelectorAll("time:not([title])")) {
    time.title = time.textContent;
    const date = new Date(time.dateTime), isToday = date.toDateString() === new Date().toDateString();
    const options = isToday ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" };
    time.textContent = date.toLocaleString(language, options);
  }
};
localize(document);
document.addEventListener("htmx:load", (event) => localize(event.detail.elt));

// What is followed was deleted, or the key is valid no more: the page says so itself.
document.addEventListener("htmx:responseError", (event) => {
  if ([401, 404].includes(event.detail.xhr.status)) location.reload();
});

// A face that cannot be cut out any more leaves its place empty.
document.addEventListener("error", (event) => {
  if (event.target.matches?.("figure img, img.thumb")) event.target.style.visibility = "hidden";
}, true);

document.querySelector("[data-share]")?.addEventListener("click", async (event) => {
  const button = event.currentTarget, address = location.origin + location.pathname;
  if (navigator.share && matchMedia("(pointer: coarse)").matches) {
    await navigator.share({ title: document.title, url: address }).catch(() => {});
    return;
  }
  await navigator.clipboard.writeText(address);
  button.textContent = button.dataset.done;
});
