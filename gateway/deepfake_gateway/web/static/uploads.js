// <drop-area>: files that are dropped, pasted or chosen are sent at once, each with its own row of progress.
import { follow } from "./follow.js";

class DropArea extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    for (const input of this.querySelectorAll("input[type=file]")) {
      input.addEventListener("change", () => this.send(input.files));
    }
    for (const kind of ["dragenter", "dragover"]) {
      document.addEventListener(kind, (event) => { event.preventDefault(); this.classList.add("over"); });
    }
    for (const kind of ["dragleave", "drop"]) {
      document.addEventListener(kind, () => this.classList.remove("over"));
    }
    document.addEventListener("drop", (event) => { event.preventDefault(); this.send(event.dataTransfer.files); });
    document.addEventListener("paste", (event) => this.send(event.clipboardData.files));
  }

  send(files) {
    const alone = files.length === 1;
    for (const file of files) this.sendOne(file, alone);
  }

  sendOne(file, alone) {
    const section = document.querySelector(".js-uploads");
    section.hidden = false;
    const row = section.querySelector("tbody").insertRow();
    row.innerHTML = '<td class="name"></td><td class="wide-only so-far"></td><td><progress></progress></td><td class="state"></td><td><button type="button">Cancel</button></td>';
    row.querySelector(".name").textContent = file.name;
    row.querySelector("progress").setAttribute("aria-label", `Progress of ${file.name}`);
    const state = row.querySelector(".state");
    state.textContent = "sending";

    const data = new FormData();
    for (const input of this.form.querySelectorAll("input[type=number]")) {
      if (input.value) data.append(input.name, input.value);
    }
    data.append("file", file);
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/analyses");
    request.upload.addEventListener("progress", (event) => {
      const bar = row.querySelector("progress");
      bar.max = event.total;
      bar.value = event.loaded;
      state.textContent = `sending, ${Math.round((100 * event.loaded) / event.total)}%`;
    });
    request.addEventListener("error", () => { state.textContent = "the connection broke off; send it again"; });
    request.addEventListener("load", () => this.sent(request, row, alone));
    row.querySelector("button").addEventListener("click", () => { request.abort(); row.remove(); }, { once: true });
    request.send(data);
  }

  sent(request, row, alone) {
    const state = row.querySelector(".state");
    const answer = JSON.parse(request.responseText);
    if (request.status >= 300) {
      state.textContent = answer.detail;
      row.querySelector("progress").remove();
      return;
    }
    if (alone) {
      location.assign(answer.links.page);
      return;
    }
    row.querySelector("button").addEventListener("click", () => fetch(`${answer.links.self}/cancel`, { method: "POST" }));
    follow(answer.id, row, (analysis) => {
      const link = document.createElement("a");
      link.href = answer.links.page;
      link.textContent = analysis.verdict ? analysis.verdict.label : analysis.status;
      state.replaceChildren(link);
      row.querySelector("button").remove();
    });
  }
}

customElements.define("drop-area", DropArea);
