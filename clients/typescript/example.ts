// Checked by `npm run check`: what people write against the types.
import { AnalysisError, GatewayClient, GatewayError } from "./client.js";

export async function watchFor(seconds: number, url: string, show: (score: number | null) => void): Promise<string> {
  const client = new GatewayClient("http://127.0.0.1:8080");
  const watch = await client.watch(url, { duration_s: seconds, step_s: 2 });
  for await (const event of client.watchEvents(watch.id)) {
    if (event.kind === "verdict") show(event.data.fake_probability);
    if (event.kind === "end") return event.data.error?.message ?? event.data.end_reason ?? "deleted";
  }
  return "";
}

export async function verdictOn(file: File): Promise<string> {
  const client = new GatewayClient("http://127.0.0.1:8080", { key: "KEY" });
  try {
    const verdict = await client.analyze(file, {
      num_frames: 16,
      onProgress: ({ frames_done, frames_expected }) => console.log(frames_done, frames_expected),
    });
    const score: number | null = verdict.fake_probability;
    return `${verdict.label} ${score ?? verdict.reason}`;
  } catch (error) {
    if (error instanceof GatewayError) return `refused (${error.status}): ${error.message}`;
    if (error instanceof AnalysisError) return `${error.kind}: ${error.message}`;
    throw error;
  }
}

export async function nameOf(id: string): Promise<string | undefined> {
  for await (const event of new GatewayClient("http://127.0.0.1:8080").events(id)) {
    // @ts-expect-error an analysis that was deleted has no file
    if (event.kind === "end" && event.data.file.name) return event.data.file?.name;
  }
}
