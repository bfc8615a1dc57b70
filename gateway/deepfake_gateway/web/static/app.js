// What the pages do beyond links, forms and what htmx reads from their attributes: sending several files with progress,
// the result's player, times of this place, and the link to share.
import "./uploads.js";
import "./player.js";

document.documentElement.classList.add("js");

const language = document.documentElement.lang;
const localize = (root) => {
  for (const time of root.querySelectorAll("time:not([title])")) {
    time.title = time.textContent;
    const options = { dateStyle: "medium", timeStyle: "exact" in time.dataset ? "long" : "short" };
    time.textContent = new Date(time.dateTime).toLocaleString(language, options);
  }
};
localize(document);

// What a screen reader says when a part of the page is new: only what has changed since.
const say = (words) => {
  const said = document.querySelector("#said");
  if (words && said.textContent !== words) said.textContent = words;
};
document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  localize(elt);
  if (elt === document.body) return;
  const news = elt.closest("[data-said]") ?? elt.querySelector("[data-said]");
  say(news?.dataset.said);
});

// Pages that follow something ask on: whether they are answered is said.
const away = (isAway) => {
  const note = document.querySelector("#away");
  const words = isAway ? note.dataset.words : "";
  if (note.textContent !== words) note.textContent = words;
};
document.addEventListener("htmx:sendError", () => away(true));
document.addEventListener("htmx:afterOnLoad", (event) => away(event.detail.xhr.status >= 500));

// Days are those of this place, as the times beside them are.
for (const input of document.querySelectorAll("input[name=zone]")) {
  input.value = Intl.DateTimeFormat().resolvedOptions().timeZone;
}

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
  // Browsers have no clipboard on pages without https, unless they are of this machine.
  const isCopied = await navigator.clipboard?.writeText(address).then(() => true, () => false);
  if (!isCopied) {
    prompt(button.textContent, address);
    return;
  }
  const isHere = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  const words = `${button.dataset.done}${isHere ? ` ${button.dataset.here}` : ""}`;
  document.querySelector(".shared").textContent = words;
  say(words);
});
