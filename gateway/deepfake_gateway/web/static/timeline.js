// The lanes under a video: a playhead through all of them, seeking by click, keys and slider, and zoom.

const MOST_ZOOM = 64;
const LITTLE_S = 0.001;

class Clock {
  currentTime = 0;
  pause() {}
}

export class Timeline {
  // `say` puts a face's number, from 0, and its score into words.
  constructor(media, frames, spanS, say) {
    this.media = media;
    this.frames = frames;
    this.spanS = spanS;
    this.say = say;
    this.zoom = 1;
    this.root = document.querySelector(".timeline");
    this.views = this.root ? [...this.root.querySelectorAll(".view")] : [];
    this.slider = document.querySelector("#seek");
    this.now = document.querySelector("#now");
    this.connect();
    this.follow();
  }

  connect() {
    const on = (selector, kind, act) => {
      for (const element of document.querySelectorAll(selector)) {
        element.addEventListener(kind, (event) => act(element, event));
      }
    };
    on("[data-step]", "click", (button) => this.step(Number(button.dataset.step)));
    document.addEventListener("click", (event) => {  // moments are loaded anew when their heatmaps are there
      const button = event.target.closest("[data-seek]");
      if (!button) return;
      event.preventDefault();
      this.seek(Number(button.dataset.seek));
      this.media.scrollIntoView?.({ block: "nearest" });
    });
    on("[data-lane]", "click", (lane, event) => {
      const place = lane.getBoundingClientRect();
      this.seek(((event.clientX - place.left) / place.width) * this.spanS);
    });
    on("[data-zoom]", "click", (button) => this.zoomBy(Number(button.dataset.zoom)));
    this.slider?.addEventListener("input", () => this.seek(Number(this.slider.value)));
    for (const view of this.views) {
      view.addEventListener("scroll", () => { for (const other of this.views) other.scrollLeft = view.scrollLeft; });
    }
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest("select, textarea, video, .scroll, input:not([type=range])");
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || typing || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.step(step);
    });
  }

  seek(seconds) {
    this.media.currentTime = Math.min(seconds, this.media.duration || seconds);
    if (this.media instanceof Clock) this.follow();
  }

  // For a video that the browser cannot play: the lanes can be looked through all the same.
  goOnWithoutVideo() {
    this.media = new Clock();
  }

  step(direction) {
    const now = this.media.currentTime;
    const times = this.frames.map((frame) => frame.pts_seconds);
    const next = direction > 0
      ? times.find((time) => time > now + LITTLE_S) : times.findLast((time) => time < now - LITTLE_S);
    if (next === undefined) return;
    this.media.pause();
    this.seek(next);
  }

  zoomBy(factor) {
    this.zoom = Math.max(1, Math.min(MOST_ZOOM, this.zoom * factor));
    this.root.style.setProperty("--zoom", this.zoom);
    for (const view of this.views) view.tabIndex = this.zoom > 1 ? 0 : -1; // what scrolls is reached by keys
    this.showHead();
  }

  // Moves the playhead, the slider and the time to where the video is.
  follow() {
    const seconds = this.media.currentTime;
    const place = `${Math.min(100, (100 * seconds) / this.spanS)}%`;
    for (const head of document.querySelectorAll(".playhead")) {
      head.setAttribute("x1", place);
      head.setAttribute("x2", place);
      head.style.visibility = "visible";
    }
    if (this.slider) {
      const words = [this.clock(seconds), ...this.scoresAt(seconds)].join(", ");
      this.slider.value = seconds;
      this.slider.setAttribute("aria-valuetext", words);
      this.now.textContent = words;
    }
    if (this.zoom > 1) this.showHead();
  }

  showHead() {
    const [view] = this.views;
    if (!view) return;
    const x = (this.media.currentTime / this.spanS) * view.scrollWidth;
    if (x < view.scrollLeft || x > view.scrollLeft + view.clientWidth) view.scrollLeft = x - view.clientWidth / 2;
  }

  scoresAt(seconds) {
    const frame = this.frames.findLast((item) => item.pts_seconds <= seconds + LITTLE_S);
    const scored = frame ? frame.faces.filter((face) => face.fake_probability !== null) : [];
    return scored.map((face) => this.say(face.track, face.fake_probability));
  }

  clock(seconds) {
    const tenths = Math.round(10 * seconds);
    const rest = ((tenths % 600) / 10).toLocaleString(document.documentElement.lang, {
      minimumIntegerDigits: 2, minimumFractionDigits: 1,
    });
    const minutes = Math.floor(tenths / 600), hours = Math.floor(minutes / 60);
    return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
  }
}
