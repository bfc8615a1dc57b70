// <drop-area>: files that are dropped, pasted or chosen are sent at once, each with its own row of progress.

class DropArea extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.querySelector("#file").multiple = true;
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
    const alone = files.length === 1;
    for (const file of [...files]) this.sendOne(file, alone);
  }

  sendOne(file, alone) {
    const section = document.querySelector(".running");
    section.hidden = false;
    const row = this.newRow(file.name);
    section.querySelector("tbody").prepend(row);
    const state = row.querySelector(".state"), bar = row.querySelector("progress");
    const sending = (percent) => { state.textContent = state.dataset.sending.replace("{}", percent); };
    sending(0);

    const data = new FormData();
    for (const input of this.form.querySelectorAll("input[type=number]")) {
      if (input.value) data.append(input.name, input.value);
    }
    data.append("file", file);
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/analyses");
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
      else if (alone) location.assign(answer.links.page);
      else htmx.ajax("GET", `${answer.links.page}/row`, { target: row, swap: "outerHTML" });
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
