// <drop-area>: files that are dropped, pasted or chosen are sent at once, each with its own row of progress; many of them
// as one batch, which has a page of its own. What is refused leaves the rows and is listed with the reason.

const MANY = 5;

class DropArea extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.sending = 0;
    for (const input of this.querySelectorAll("input[type=file]")) {
      input.addEventListener("change", () => { this.send(input.files); input.value = ""; });
    }
    for (const kind of ["dragenter", "dragover"]) {
      document.addEventListener(kind, (event) => { event.preventDefault(); this.classList.add("over"); });
    }
    document.addEventListener("dragleave", () => this.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.classList.remove("over");
      this.send(event.dataTransfer.files);
    });
    document.addEventListener("paste", (event) => this.send(event.clipboardData.files));
  }

  send(files) {
    if (!files.length || !this.optionsFit()) return;
    const words = this.querySelector("template.row").dataset, fits = (file) => file.size <= Number(words.maxBytes);
    const all = [...files].filter(fits);
    for (const file of files) if (!fits(file)) this.refuse(file.name, words.large);
    if (all.length > MANY) this.sendTogether(all);
    else for (const file of all) this.sendOne(file, files.length === 1);
  }

  optionsFit() {
    const wrong = this.querySelector("input[type=number]:invalid");
    if (!wrong) return true;
    wrong.closest("details").open = true;
    return wrong.reportValidity();
  }

  // To leave the page would break off what is still on its way.
  sendOne(file, alone) {
    this.post("/v1/analyses", file.name, [file], (answer, row) => {
      if (alone && this.sending === 1) location.assign(answer.links.page);
      else follow(row, answer);
    });
  }

  sendTogether(files) {
    const name = this.querySelector("template.row").dataset.many.replace("{}", files.length);
    this.post("/v1/batches", name, files, (answer) => { this.next = answer.links.page; });
  }

  post(address, name, files, whenSent) {
    const row = this.newRow(name);
    const state = row.querySelector(".state"), bar = row.querySelector("progress");
    const refused = (...words) => { row.remove(); this.refuse(name, ...words); };
    document.querySelector(".running tbody").prepend(row);
    const sending = (percent) => { state.textContent = state.dataset.sending.replace("{}", percent); };
    sending(0);

    const data = new FormData();
    for (const input of this.form.querySelectorAll("input[type=number]")) {
      if (input.value) data.append(input.name, input.value);
    }
    for (const file of files) data.append("file", file);
    const request = new XMLHttpRequest();
    request.open("POST", address);
    request.upload.addEventListener("progress", (event) => {
      bar.max = event.total;
      bar.value = event.loaded;
      sending(Math.round((100 * event.loaded) / event.total));
    });
    request.addEventListener("error", () => refused(state.dataset.broken));
    request.addEventListener("load", () => {
      const answer = answerOf(request);
      if (answer?.links) whenSent(answer, row);
      else if (request.status === 401) refused(state.dataset.signedOut);
      else if (answer?.detail) refused(answer.detail, "en");
      else refused(state.dataset.odd.replace("{}", request.status));
    });
    request.addEventListener("loadend", () => {
      this.sending -= 1;
      if (this.next && !this.sending) location.assign(this.next);
    });
    row.querySelector("button").addEventListener("click", () => { request.abort(); row.remove(); });
    this.sending += 1;
    request.send(data);
  }

  // Words of the service are English.
  refuse(name, words, language = document.documentElement.lang) {
    const item = this.querySelector("template.refused").content.cloneNode(true);
    item.querySelector("b").textContent = name;
    item.querySelector("span").textContent = sentence(words);
    item.querySelector("span").lang = language;
    document.querySelector(".not-accepted ul").prepend(item);
  }

  newRow(name) {
    const row = this.querySelector("template.row").content.cloneNode(true).querySelector("tr");
    row.querySelector(".name").textContent = name;
    for (const named of row.querySelectorAll("[aria-label]")) {
      named.setAttribute("aria-label", named.getAttribute("aria-label").replace("{}", name));
    }
    return row;
  }
}

// A proxy before the service may answer something else than JSON.
const answerOf = (request) => {
  try {
    return JSON.parse(request.responseText);
  } catch {
    return null;
  }
};

const sentence = (words) => {
  const plain = words.replaceAll("`", "");
  return plain[0].toUpperCase() + plain.slice(1) + (/[.?!]$/.test(plain) ? "" : ".");
};

// The row asks how far its analysis is, and is replaced by one that does so on.
const follow = (row, { status, links }) => {
  const runs = ["queued", "running"].includes(status);
  row.setAttribute("hx-get", `${links.page}/row${runs ? "" : "?known=1"}`);
  row.setAttribute("hx-trigger", runs ? "load, every 2s" : "load");
  row.setAttribute("hx-swap", "outerHTML");
  htmx.process(row);
};

customElements.define("drop-area", DropArea);
