// @ts-check
/**
 * Client of the verdict service, for browsers and Node 18 or newer; it needs no package. Types come from `schema.d.ts`,
 * which is generated from the service's OpenAPI document.
 */

/** @typedef {import("./schema.d.ts").components["schemas"]} Schemas */
/** @typedef {import("./schema.d.ts").paths} Paths */
/** @typedef {Schemas["AnalysisDocument"]} Analysis */
/** @typedef {Schemas["Verdict"]} Verdict */
/** @typedef {Schemas["ProgressDocument"]} Progress */
/** @typedef {NonNullable<Paths["/v1/analyses"]["post"]["parameters"]["query"]>} AnalyzeOptions */
/** @typedef {NonNullable<Paths["/v1/analyses"]["get"]["parameters"]["query"]>} Filters */
/** @typedef {NonNullable<Paths["/v1/usage"]["get"]["parameters"]["query"]>} Period */
/** @typedef {Schemas["WatchDocument"]} Watch */
/** @typedef {Schemas["RollingDocument"]} RollingVerdict */
/** @typedef {Partial<Omit<Schemas["WatchForm"], "url">>} WatchOptions */
/** @typedef {{id: string, kind: "status", data: {status: Analysis["status"], reason?: string}}} StatusEvent */
/** @typedef {{id: string, kind: "progress", data: Progress}} ProgressEvent */
/** @typedef {{id: string, kind: "end", data: Partial<Analysis>}} EndEvent `data` is empty where the analysis was deleted meanwhile */
/** @typedef {StatusEvent | ProgressEvent | EndEvent} AnalysisEvent */
/** @typedef {{id: string, kind: "verdict", data: RollingVerdict}} RollingEvent */
/** @typedef {{id: string, kind: "end", data: Partial<Watch>}} WatchEndEvent `data` is empty where the watch was deleted meanwhile */
/** @typedef {StatusEvent | RollingEvent | WatchEndEvent} WatchEvent */

const RECONNECT_MS = 500;
/** Who follows a job waits so long for a service that is away, as while it is started again. */
const AWAY_MS = 60_000;
const AWAY_STATUSES = [429, 502, 503, 504];

/** A request that the service refused; `message` says in one sentence what to do. */
export class GatewayError extends Error {
  /**
   * @param {number} status HTTP status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.name = "GatewayError";
    this.status = status;
  }
}

/** An analysis that ended without a verdict; `kind` is the class of the error. */
export class AnalysisError extends Error {
  /**
   * @param {string} kind
   * @param {string} message
   */
  constructor(kind, message) {
    super(message);
    this.name = "AnalysisError";
    this.kind = kind;
  }
}

export class GatewayClient {
  /**
   * @param {string} url address of the service, such as `http://127.0.0.1:8080`
   * @param {{key?: string}} [options] `key`: of a service that asks for one
   */
  constructor(url, { key } = {}) {
    this.url = url.replace(/\/+$/, "");
    /** @type {Record<string, string>} */
    this.headers = key ? { authorization: `Bearer ${key}` } : {};
  }

  /**
   * Analyze a video or a picture and return its verdict.
   *
   * @param {Blob | Uint8Array} file
   * @param {AnalyzeOptions & {onProgress?: (progress: Progress) => void, signal?: AbortSignal}} [options] aborting
   *   cancels at the service, too: a file that is on its way arrives first (`begin` can be aborted in the midst of it)
   * @returns {Promise<Verdict>} as `deepfake analyze --json` prints it
   * @throws {GatewayError} the service refused the file or an option
   * @throws {AnalysisError} there is no verdict: the file cannot be decoded, or the server failed
   */
  async analyze(file, { onProgress, signal, ...options } = {}) {
    signal?.throwIfAborted();
    // Not with the signal: of what is broken off while the service takes it, nobody would know the id to cancel.
    const begun = await this.begin(file, options);
    /** @type {Partial<Analysis>} */
    let analysis = begun;
    try {
      signal?.throwIfAborted();
      if (analysis.status === "queued" || analysis.status === "running") {
        for await (const event of this.events(begun.id, { signal })) {
          if (event.kind === "progress") onProgress?.(event.data);
          if (event.kind === "end") analysis = event.data;
        }
      }
    } catch (error) {
      if (signal?.aborted) await this.cancel(begun.id).catch(() => undefined);
      throw error;
    }
    if (analysis.verdict) return analysis.verdict;
    const { type, message } = analysis.error ?? { type: "Canceled", message: `the analysis was ${analysis.status ?? "deleted"}` };
    throw new AnalysisError(type, message);
  }

  /**
   * Send a file; its analysis may be over already, where the service knows its result.
   *
   * @param {Blob | Uint8Array} file
   * @param {AnalyzeOptions} [options]
   * @param {{signal?: AbortSignal, idempotencyKey?: string}} [request]
   * @returns {Promise<Analysis>}
   */
  begin(file, options = {}, { signal, idempotencyKey } = {}) {
    const name = "name" in file && typeof file.name === "string" ? { file_name: file.name } : {};
    /** @type {Record<string, string>} */
    const headers = { "content-type": "application/octet-stream" };
    if (idempotencyKey) headers["idempotency-key"] = idempotencyKey;
    const body = /** @type {BodyInit} */ (file);
    return this.#json("POST", "/v1/analyses", { query: { ...name, ...options }, headers, body, signal });
  }

  /**
   * Follow an analysis until it is over. A connection that breaks is made again, behind the last event; a service that
   * is away is waited for, up to a minute.
   *
   * @param {string} id
   * @param {{signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<AnalysisEvent, void, void>}
   */
  events(id, options = {}) {
    return this.#events(`/v1/analyses/${encodeURIComponent(id)}/events`, options);
  }

  /**
   * Begin to watch a live source: an RTSP camera, an HLS playlist, or another stream at http or https.
   *
   * @param {string} url
   * @param {WatchOptions} [options]
   * @returns {Promise<Watch>}
   */
  watch(url, options = {}) {
    const headers = { "content-type": "application/json" };
    return this.#json("POST", "/v1/watches", { headers, body: JSON.stringify({ url, ...options }) });
  }

  /**
   * Follow a watch until it is over, as `events` follows an analysis.
   *
   * @param {string} id
   * @param {{signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<WatchEvent, void, void>}
   */
  watchEvents(id, options = {}) {
    return this.#events(`/v1/watches/${encodeURIComponent(id)}/events`, options);
  }

  /** @param {string} id @returns {Promise<Watch>} with its latest verdict */
  getWatch(id) {
    return this.#json("GET", `/v1/watches/${encodeURIComponent(id)}`);
  }

  /** @returns {Promise<Schemas["WatchesDocument"]>} newest first */
  listWatches() {
    return this.#json("GET", "/v1/watches");
  }

  /** End a watch; its latest verdict stays. @param {string} id @returns {Promise<Watch>} */
  endWatch(id) {
    return this.#json("POST", `/v1/watches/${encodeURIComponent(id)}/cancel`);
  }

  /** Remove a watch with its verdicts. @param {string} id @returns {Promise<void>} */
  async deleteWatch(id) {
    await this.#request("DELETE", `/v1/watches/${encodeURIComponent(id)}`);
  }

  /**
   * @param {string} path
   * @param {{signal?: AbortSignal}} options
   * @returns {AsyncGenerator<any, void, void>} typed by the methods above
   */
  async *#events(path, { signal }) {
    let lastId = "";
    let heardAt = Date.now();
    while (true) {
      /** @type {Record<string, string>} */
      const headers = lastId ? { "last-event-id": lastId } : {};
      try {
        const response = await this.#request("GET", path, { headers, signal });
        heardAt = Date.now();
        for await (const event of readEvents(response)) {
          heardAt = Date.now();
          lastId = event.id || lastId;
          yield event;
          if (event.kind === "end") return;
        }
      } catch (error) {
        if (signal?.aborted || !isAway(error) || Date.now() - heardAt > AWAY_MS) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
    }
  }

  /** @param {string} id @returns {Promise<Analysis>} */
  get(id) {
    return this.#json("GET", `/v1/analyses/${encodeURIComponent(id)}`);
  }

  /** @param {Filters} [filters] @returns {Promise<Schemas["AnalysesDocument"]>} a page, newest first */
  list(filters = {}) {
    return this.#json("GET", "/v1/analyses", { query: filters });
  }

  /** @param {string} id @returns {Promise<Analysis>} */
  cancel(id) {
    return this.#json("POST", `/v1/analyses/${encodeURIComponent(id)}/cancel`);
  }

  /** Remove an analysis with its file, report and result. @param {string} id @returns {Promise<void>} */
  async delete(id) {
    await this.#request("DELETE", `/v1/analyses/${encodeURIComponent(id)}`);
  }

  /** @returns {Promise<Schemas["ModelsDocument"]["models"]>} */
  async models() {
    return (await this.#json("GET", "/v1/models")).models;
  }

  /**
   * What was used, by key and day.
   *
   * @param {Period} [period] days as `YYYY-MM-DD`, both included; the last 30 by default
   * @returns {Promise<Schemas["UsageDocument"]>}
   */
  usage(period = {}) {
    return this.#json("GET", "/v1/usage", { query: period });
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {{query?: object, headers?: Record<string, string>, body?: BodyInit, signal?: AbortSignal}} [options]
   * @returns {Promise<any>} typed by the methods above
   */
  async #json(method, path, options) {
    return (await this.#request(method, path, options)).json();
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {{query?: object, headers?: Record<string, string>, body?: BodyInit, signal?: AbortSignal}} [options]
   */
  async #request(method, path, { query = {}, headers = {}, body, signal } = {}) {
    const fields = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
    const search = fields.length ? `?${new URLSearchParams(fields.map(([name, value]) => [name, String(value)]))}` : "";
    const response = await fetch(this.url + path + search, {
      method,
      headers: { ...this.headers, ...headers },
      body,
      signal,
    });
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({}));
    throw new GatewayError(response.status, problem.detail ?? `${method} ${path} was answered ${response.status}`);
  }
}

/** @param {unknown} error @returns {boolean} whether a later try may succeed; TypeError is fetch's word for no connection */
function isAway(error) {
  return error instanceof TypeError || (error instanceof GatewayError && AWAY_STATUSES.includes(error.status));
}

/**
 * Read server-sent events (WHATWG HTML), each with JSON as its data.
 *
 * @param {Response} response
 * @returns {AsyncGenerator<{id: string, kind: string | undefined, data: any}, void, void>}
 */
async function* readEvents(response) {
  if (!response.body) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  /** @type {Record<string, string>} */
  let fields = {};
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const [, name, text] = /^([^:]*):? ?(.*?)\r?$/.exec(line) ?? ["", "", ""];
        if (name) {
          fields[name] = (fields[name] ?? "") + text;
        } else if (!text) {
          if (fields.data) {
            yield { id: fields.id ?? "", kind: fields.event, data: JSON.parse(fields.data) };
          }
          fields = {};
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
