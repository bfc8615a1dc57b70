// <verdict-player>: the video or picture with boxes over the faces, and the lanes, thumbnails and buttons around it.

const COLORS = { FAKE: ["#ff9a62", "#c2410c"], REAL: ["#6fd0e4", "#0f6e84"], NONE: ["#e4d06a", "#6b5b00"] };

class VerdictPlayer extends HTMLElement {
  async connectedCallback() {
    this.media = this.querySelector("video, img");
    this.canvas = this.querySelector("canvas");
    this.boxes = true;
    this.isVideo = this.media.tagName === "VIDEO";
    this.media.addEventListener("error", () => this.cannotPlay());
    if (this.media.error) this.cannotPlay();
    this.verdict = await (await fetch(this.dataset.verdict)).json();
    this.tracks = new Map(this.verdict.tracks.map((track) => [track.track, track]));
    this.frames = this.verdict.frames;
    new ResizeObserver(() => this.draw()).observe(this);
    if (this.isVideo) this.connectVideo();
    else if (!this.media.complete) this.media.addEventListener("load", () => this.ready());
    else this.ready();
    document.querySelector("[data-boxes]")?.addEventListener("click", (event) => {
      this.boxes = !this.boxes;
      event.currentTarget.setAttribute("aria-pressed", String(this.boxes));
      this.draw();
    });
  }

  connectVideo() {
    const redraw = () => { this.draw(); this.moveHeads(); };
    const loop = () => { redraw(); if (!this.media.paused) requestAnimationFrame(loop); };
    this.media.addEventListener("play", loop);
    for (const kind of ["seeked", "timeupdate", "loadeddata"]) this.media.addEventListener(kind, redraw);
    if (this.media.readyState >= 1) this.ready();
    else this.media.addEventListener("loadedmetadata", () => this.ready(), { once: true });
    for (const button of document.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => this.step(Number(button.dataset.step)));
    }
    for (const button of document.querySelectorAll("[data-seek]")) {
      button.addEventListener("click", () => { this.media.currentTime = Number(button.dataset.seek); });
    }
    for (const lane of document.querySelectorAll("[data-lane]")) {
      lane.addEventListener("click", (event) => {
        const place = lane.getBoundingClientRect();
        this.media.currentTime = ((event.clientX - place.left) / place.width) * this.dataset.span;
      });
    }
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest("input, select, textarea, video");
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && !typing) { event.preventDefault(); this.step(step); }
    });
  }

  ready() {
    this.draw();
    this.fillPictures();
  }

  step(direction) {
    const now = this.media.currentTime;
    const times = this.frames.map((frame) => frame.pts_seconds);
    const next = direction > 0 ? times.find((time) => time > now + 0.001) : times.findLast((time) => time < now - 0.001);
    if (next !== undefined) { this.media.pause(); this.media.currentTime = next; }
  }

  moveHeads() {
    const place = `${Math.min(100, (100 * this.media.currentTime) / this.dataset.span)}%`;
    for (const head of document.querySelectorAll(".playhead")) {
      head.setAttribute("x1", place);
      head.setAttribute("x2", place);
      head.style.visibility = "visible";
    }
    const seconds = this.media.currentTime;
    const time = document.querySelector("output.time");
    if (time) time.textContent = `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
  }

  // Boxes between two analyzed frames lie between theirs.
  facesNow() {
    if (!this.isVideo) return this.frames[0] ? [this.frames[0].faces, this.frames[0].size_wh] : [[], [1, 1]];
    const now = this.media.currentTime + 0.0005;
    let number = this.frames.findLastIndex((frame) => frame.pts_seconds <= now);
    if (number < 0) number = 0;
    const before = this.frames[number], after = this.frames[number + 1];
    if (!before) return [[], [1, 1]];
    const share = after ? (now - before.pts_seconds) / (after.pts_seconds - before.pts_seconds) : 0;
    const faces = before.faces.map((face) => {
      const later = after?.faces.find((other) => other.track === face.track);
      const t = Math.max(0, Math.min(1, share));
      if (!later) return t < 0.5 ? face : null;
      return { ...face, box_xyxy: face.box_xyxy.map((value, i) => value + t * (later.box_xyxy[i] - value)) };
    });
    return [faces.filter(Boolean), before.size_wh];
  }

  draw() {
    const { canvas } = this;
    const width = canvas.clientWidth, height = canvas.clientHeight, scale = devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    if (!this.boxes || !this.frames) return;
    const [faces, [frameWidth, frameHeight]] = this.facesNow();
    const fit = Math.min(width / frameWidth, height / frameHeight);
    const dx = (width - fit * frameWidth) / 2, dy = (height - fit * frameHeight) / 2;
    for (const face of faces) this.drawBox(pen, face, fit, dx, dy);
  }

  drawBox(pen, face, fit, dx, dy) {
    const track = this.tracks.get(face.track);
    const decides = track && track.counted && !track.background;
    const [line, ground] = COLORS[decides ? track.label : "NONE"];
    const [left, top, right, bottom] = face.box_xyxy.map((value, i) => value * fit + (i % 2 ? dy : dx));
    pen.lineWidth = 3;
    pen.strokeStyle = line;
    pen.setLineDash(face.weight > 0 ? [] : [6, 5]);
    pen.beginPath();
    pen.roundRect(left, top, right - left, bottom - top, 6);
    pen.stroke();
    const words = decides ? `${face.track + 1} ${track.label} ${track.fake_probability.toFixed(2)}` : `${face.track + 1}`;
    pen.font = "600 13px system-ui, sans-serif";
    const wide = pen.measureText(words).width + 12, y = top >= 24 ? top - 22 : top;
    pen.fillStyle = ground;
    pen.fillRect(left, y, wide, 20);
    pen.fillStyle = "#fff";
    pen.fillText(words, left + 6, y + 15);
  }

  // Thumbnails are cut out of the medium here, by a second player that nobody sees.
  async fillPictures() {
    const wanted = [...document.querySelectorAll("[data-crop]")].map((canvas) => ({
      canvas, time: Number(canvas.dataset.crop), box: canvas.dataset.box.split(",").map(Number),
    }));
    for (const canvas of document.querySelectorAll("[data-thumb]")) {
      let best = null;
      for (const frame of this.frames) {
        for (const face of frame.faces) {
          if (face.track === Number(canvas.dataset.thumb) && (!best || face.weight > best.face.weight)) best = { frame, face };
        }
      }
      if (best) wanted.push({ canvas, time: best.frame.pts_seconds, box: best.face.box_xyxy });
    }
    wanted.sort((a, b) => a.time - b.time);
    let source = this.media;
    if (this.isVideo) {
      source = document.createElement("video");
      source.muted = true;
      source.preload = "auto";
      source.src = this.media.currentSrc || this.media.src;
      await new Promise((done) => { source.onloadeddata = done; source.onerror = done; });
      if (source.error) return;
    }
    for (const { canvas, time, box } of wanted) {
      if (this.isVideo && Math.abs(source.currentTime - time) > 0.0005) {
        await new Promise((done) => { source.onseeked = done; source.currentTime = time + 0.0005; });
      }
      cut(canvas, source, box);
    }
  }

  cannotPlay() {
    if (this.querySelector(".cannot")) return;
    const words = document.createElement("p");
    words.className = "cannot";
    words.textContent = "This browser cannot show this file. The result below is complete; the report has pictures.";
    this.append(words);
  }
}

function cut(canvas, source, [left, top, right, bottom]) {
  const side = 1.3 * Math.max(right - left, bottom - top);
  const x = (left + right - side) / 2, y = (top + bottom - side) / 2;
  canvas.getContext("2d").drawImage(source, x, y, side, side, 0, 0, canvas.width, canvas.height);
}

customElements.define("verdict-player", VerdictPlayer);
