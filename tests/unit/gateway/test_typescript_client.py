"""The TypeScript client: types of the current interface, and a real Node that gets verdicts with it."""

import json
import runpy
import shutil
import subprocess

import gateways
import pytest
from checkout import ROOT
from debian import program

FOLDER = ROOT / "clients/typescript"
TSC = shutil.which("tsc", path=FOLDER / "node_modules/.bin") or shutil.which("tsc")
SCRIPT = """
import assert from "node:assert/strict";
import { File } from "node:buffer"; // not global before Node 20
import { readFileSync } from "node:fs";
import { AnalysisError, GatewayClient, GatewayError } from "CLIENT";

const [address, path] = process.argv.slice(2);
const client = new GatewayClient(address + "/", { key: "a key that an open service does not look at" });
const clip = new File([readFileSync(path)], "clip.mp4");

const verdict = await client.analyze(clip, { num_frames: 4, threshold: undefined });
const events = [];
const analysis = await client.begin(clip, { num_frames: 3 });
for await (const event of client.events(analysis.id)) events.push(event.kind);
assert.equal(events.at(-1), "end");
assert.equal((await client.get(analysis.id)).verdict.frames.length, 3);

await assert.rejects(client.analyze(clip, { num_frames: -1 }), (error) => {
  assert.ok(error instanceof GatewayError);
  assert.equal(error.status, 422);
  return /num_frames/.test(error.message);
});
await assert.rejects(client.analyze(new Uint8Array([1, 2, 3])), (error) => {
  assert.ok(error instanceof AnalysisError);
  return error.kind === "MediaOpenError";
});
const page = await client.list({ limit: 2, status: "done" });
assert.deepEqual(page.items.map((item) => item.file.name), ["clip.mp4", "clip.mp4"]);
await client.delete(analysis.id);
await assert.rejects(client.get(analysis.id), { status: 404 });
assert.ok((await client.models())[0].is_default);
assert.equal((await client.usage()).total.sent, 3);
await assert.rejects(client.usage({ from: "2026-01-02", to: "2026-01-01" }), { status: 422 });

const watch = await client.watch("http://127.0.0.1/live.ts", { step_s: 2 });
const seen = [];
for await (const event of client.watchEvents(watch.id)) seen.push(event);
assert.equal(seen.at(-1).data.end_reason, "source_ended");
assert.ok(seen.some((event) => event.kind === "verdict" && event.data.label === "FAKE"));
assert.deepEqual((await client.listWatches()).items.map((item) => item.id), [watch.id]);
await assert.rejects(client.endWatch(watch.id), { status: 409 });
assert.equal((await client.getWatch(watch.id)).verdict.label, "FAKE");
await client.deleteWatch(watch.id);
console.log(JSON.stringify(verdict));
"""


RESTARTED = """
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { GatewayClient } from "CLIENT";

// A service that ends while it is followed, is away, comes back behind a proxy that has nothing yet, and goes on.
const event = (id, kind, data) => `id: ${id}\\nevent: ${kind}\\ndata: ${JSON.stringify(data)}\\n\\n`;
const behind = [];
const answers = [
  (response) => response.writeHead(200).write(event(1, "status", { status: "queued" }), () => restart(response)),
  (response) => response.writeHead(503).end("<html>"),
  (response) => response.writeHead(200).end(event(2, "end", { status: "done" })),
];
const server = createServer((request, response) => {
  behind.push(request.headers["last-event-id"]);
  answers.shift()(response);
});
const port = await new Promise((is) => server.listen(0, "127.0.0.1", () => is(server.address().port)));
function restart(response) {
  setTimeout(() => {
    response.destroy();
    server.closeAllConnections();
    server.close(() => setTimeout(() => server.listen(port, "127.0.0.1"), 1200)); // longer than a pause between tries
  }, 100);
}
const seen = [];
for await (const event of new GatewayClient(`http://127.0.0.1:${port}`).events("an-id")) seen.push(event.kind);
assert.deepEqual(seen, ["status", "end"]);
assert.deepEqual(behind, [undefined, "1", "1"]);
server.close();
"""


ABORTED = """
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { GatewayClient } from "CLIENT";

// A service that has the file already when the caller aborts, and answers only then.
const stop = new AbortController();
const asked = [];
const server = createServer(async (request, response) => {
  for await (const _ of request);
  asked.push(`${request.method} ${request.url}`);
  if (asked.length === 1) stop.abort();
  setTimeout(() => response.end(JSON.stringify({ id: "an-id", status: "queued" })), 50);
});
const port = await new Promise((is) => server.listen(0, "127.0.0.1", () => is(server.address().port)));
const client = new GatewayClient(`http://127.0.0.1:${port}`);
const file = new Uint8Array([1, 2, 3]);
await assert.rejects(client.analyze(file, { signal: stop.signal }), { name: "AbortError" });
assert.deepEqual(asked, ["POST /v1/analyses", "POST /v1/analyses/an-id/cancel"]);
await assert.rejects(client.analyze(file, { signal: stop.signal }), { name: "AbortError" });
assert.equal(asked.length, 2); // what was aborted before is not even sent
server.close();
"""


def test_the_types_are_of_the_current_interface(gateway):
    digest = runpy.run_path(str(FOLDER / "generate.py"))["digest"]
    first_line = (FOLDER / "schema.d.ts").read_text(encoding="utf-8").partition("\n")[0]
    assert first_line.endswith(digest(gateway.get("/openapi.json").json())), (
        "in clients/typescript, run: npm install && npm run generate ADDRESS_OF_A_GATEWAY"
    )
    # What people import names all that the code has.
    declared = (FOLDER / "client.d.ts").read_text(encoding="utf-8")
    code = (FOLDER / "client.js").read_text(encoding="utf-8")
    for name in (
        "analyze",
        "begin",
        "events",
        "get",
        "list",
        "cancel",
        "delete",
        "models",
        "usage",
        "watch",
        "watchEvents",
        "getWatch",
        "listWatches",
        "endWatch",
        "deleteWatch",
    ):
        assert f" {name}(" in declared
        assert f" {name}(" in code or f"*{name}(" in code


@pytest.mark.debian("nodejs")
def test_node_gets_a_verdict(tmp_path, clip):
    file = tmp_path / "clip.mp4"
    file.write_bytes(clip)
    script = tmp_path / "script.mjs"
    script.write_text(SCRIPT.replace("CLIENT", (FOLDER / "client.js").as_uri()))
    settings = {"url_intake": True, "allowed_networks": ("127.0.0.0/8",)}
    with gateways.listening_gateway(tmp_path / "data", **settings) as (address, _):
        command = [program("nodejs"), str(script), address, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["frames"]) == 4


@pytest.mark.debian("nodejs")
@pytest.mark.parametrize("code", [RESTARTED, ABORTED], ids=["restarted", "aborted"])
def test_node(tmp_path, code):
    script = tmp_path / "script.mjs"
    script.write_text(code.replace("CLIENT", (FOLDER / "client.js").as_uri()))
    done = subprocess.run([program("nodejs"), str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(TSC is None, reason="no TypeScript compiler (`npm install` in clients/typescript)")
def test_the_compiler_finds_no_mistake():
    done = subprocess.run([TSC, "--project", str(FOLDER)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
