// <drop-area>: files that are dropped, pasted or chosen are sent at once, each with its own row of progress; many of them
// as one batch, which has a page of its own.

const MANY = 5;

class DropArea extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
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
    const all = [...files];
    if (all.length > MANY) this.sendTogether(all);
    else for (const file of all) this.sendOne(file, all.length === 1);
  }

  sendOne(file, alone) {
    this.post("/v1/analyses", file.name, [file], (answer, row) => {
      if (alone) location.assign(answer.links.page);
      else htmx.ajax("GET", `${answer.links.page}/row`, { target: row, swap: "outerHTML" });
    });
  }

  sendTogether(files) {
    const name = this.querySelector("template").dataset.many.replace("{}", files.length);
    this.post("/v1/batches", name, files, (answer) => location.assign(answer.links.page));
  }

  post(address, name, files, whenSent) {
    const section = document.querySelector(".running");
    section.hidden = false;
    const row = this.newRow(name);
    section.querySelector("tbody").prepend(row);
    const state = row.querySelector(".state"), bar = row.querySelector("progress");
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
    const refused = (words) => { state.textContent = words; bar.remove(); };
    request.addEventListener("error", () => refused(state.dataset.broken));
    request.addEventListener("load", () => {
      const answer = JSON.parse(request.responseText);
      if (request.status >= 300) refused(answer.detail);
      else whenSent(answer, row);
    });
    row.querySelector("button").addEventListener("click", () => { request.abort(); row.remove(); });
    request.send(data);
  }

  newRow(name) {
    const row = this.querySelector("template").content.cloneNode(true).querySelector("tr");
    row.querySelector(".name").textContent = name;
    for (const named of row.querySelectorAll("[aria-label]")) {
      named.setAttribute("aria-label", named.getAttribute("aria-label").replace("{}", name));
    }
    return row;
  }
}

customElements.define("drop-area", DropArea);
