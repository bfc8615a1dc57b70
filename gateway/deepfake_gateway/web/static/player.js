// <verdict-player>: the video or picture with boxes over the faces. The lanes below it are seen to by `Timeline`.
import { Timeline } from "./timeline.js";

const COLORS = { FAKE: ["#ff9a62", "#b93c0a"], REAL: ["#6fd0e4", "#0f6377"], INCONCLUSIVE: ["#e4d06a", "#655600"] };
const LITTLE_S = 0.0005; // a time lies within its frame, whatever is rounded on the way

class VerdictPlayer extends HTMLElement {
  async connectedCallback() {
    this.media = this.querySelector("video, img");
    this.canvas = this.querySelector("canvas");
    this.boxes = true;
    this.isVideo = this.media.tagName === "VIDEO";
    this.verdict = await (await fetch(this.dataset.verdict)).json();
    this.tracks = new Map(this.verdict.tracks.map((track) => [track.track, track]));
    this.frames = this.verdict.frames;
    new ResizeObserver(() => this.draw()).observe(this);
    document.querySelector("[data-boxes]").addEventListener("click", (event) => {
      this.boxes = !this.boxes;
      event.currentTarget.setAttribute("aria-pressed", String(this.boxes));
      this.draw();
    });
    if (this.isVideo) this.connectVideo();
    this.media.addEventListener("error", () => this.goOnWithoutMedia());
    if (this.media.error) this.goOnWithoutMedia();
    this.media.addEventListener("load", () => this.draw());
    this.draw();
  }

  connectVideo() {
    const { media } = this;
    this.timeline = new Timeline(media, this.frames, Number(this.dataset.span), (face, score) =>
      `${this.dataset.face.replace("{}", face + 1)} ${this.number(score)}`);
    const redraw = () => { this.draw(); this.timeline.follow(); };
    const loop = () => { redraw(); if (!media.paused) requestAnimationFrame(loop); };
    media.addEventListener("play", loop);
    for (const kind of ["seeked", "timeupdate", "loadeddata"]) media.addEventListener(kind, redraw);
  }

  goOnWithoutMedia() {
    this.querySelector(".cannot").hidden = false;
    this.canvas.hidden = this.media.hidden = true;
    document.querySelector("[data-boxes]").hidden = true;
    this.timeline?.goOnWithoutVideo();
  }

  number(score) {
    return score.toLocaleString(document.documentElement.lang, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  }

  // Boxes between two analyzed frames lie between theirs.
  facesNow() {
    if (!this.isVideo) return this.frames[0] ? [this.frames[0].faces, this.frames[0].size_wh] : [[], [1, 1]];
    const now = this.media.currentTime + LITTLE_S;
    const number = Math.max(0, this.frames.findLastIndex((frame) => frame.pts_seconds <= now));
    const before = this.frames[number], after = this.frames[number + 1];
    if (!before) return [[], [1, 1]];
    const share = after ? (now - before.pts_seconds) / (after.pts_seconds - before.pts_seconds) : 0;
    const t = Math.max(0, Math.min(1, share));
    const faces = before.faces.map((face) => {
      const later = after?.faces.find((other) => other.track === face.track);
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
    const [line, ground] = COLORS[decides ? track.label : "INCONCLUSIVE"];
    const [left, top, right, bottom] = face.box_xyxy.map((value, i) => value * fit + (i % 2 ? dy : dx));
    pen.lineWidth = 3;
    pen.strokeStyle = line;
    pen.setLineDash(face.weight > 0 ? [] : [6, 5]);
    pen.beginPath();
    pen.roundRect(left, top, right - left, bottom - top, 6);
    pen.stroke();
    const label = decides && this.dataset[track.label.toLowerCase()];
    const words = label ? `${face.track + 1} ${label} ${this.number(track.fake_probability)}` : `${face.track + 1}`;
    pen.font = "600 13px system-ui, sans-serif";
    const wide = pen.measureText(words).width + 12, y = top >= 24 ? top - 22 : top;
    const x = Math.max(0, Math.min(left, this.canvas.clientWidth - wide));
    pen.fillStyle = ground;
    pen.fillRect(x, y, wide, 20);
    pen.fillStyle = "#fff";
    pen.fillText(words, x + 6, y + 15);
  }
}

customElements.define("verdict-player", VerdictPlayer);
