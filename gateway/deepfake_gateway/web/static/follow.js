// Shows the progress of an analysis in an element with .state, .so-far and a <progress>, until it is over.

export function follow(id, element, whenOver) {
  const source = new EventSource(`/v1/analyses/${id}/events`);
  let first = null;
  source.addEventListener("status", (event) => {
    element.querySelector(".state").textContent = JSON.parse(event.data).status;
  });
  source.addEventListener("progress", (event) => {
    const progress = JSON.parse(event.data);
    first ??= { done: progress.frames_done, at: performance.now() };
    show(element, progress, first);
  });
  source.addEventListener("end", (event) => {
    source.close();
    whenOver(JSON.parse(event.data));
  });
}

function show(element, progress, first) {
  const { frames_done: done, frames_expected: expected } = progress;
  const bar = element.querySelector("progress");
  let words = `${done} frames`;
  if (expected) {
    bar.max = expected;
    bar.value = Math.min(done, expected);
    words = `${Math.min(100, Math.round((100 * done) / expected))}%`;
    const rate = (done - first.done) / (performance.now() - first.at);
    if (rate > 0) words += `, ${Math.max(1, Math.round((expected - done) / rate / 1000))} s left`;
  }
  element.querySelector(".state").textContent = words;
  const soFar = element.querySelector(".so-far");
  if (soFar && progress.label) {
    const score = progress.fake_probability;
    soFar.textContent = score === null ? "no face to judge so far" : `${progress.label} so far, ${score.toFixed(2)}`;
  }
}
