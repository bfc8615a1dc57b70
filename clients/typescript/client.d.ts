/** A request that the service refused; `message` says in one sentence what to do. */
export class GatewayError extends Error {
    /**
     * @param {number} status HTTP status
     * @param {string} message
     */
    constructor(status: number, message: string);
    status: number;
}
/** An analysis that ended without a verdict; `kind` is the class of the error. */
export class AnalysisError extends Error {
    /**
     * @param {string} kind
     * @param {string} message
     */
    constructor(kind: string, message: string);
    kind: string;
}
export class GatewayClient {
    /**
     * @param {string} url address of the service, such as `http://127.0.0.1:8080`
     * @param {{key?: string}} [options] `key`: of a service that asks for one
     */
    constructor(url: string, { key }?: {
        key?: string;
    });
    url: string;
    /** @type {Record<string, string>} */
    headers: Record<string, string>;
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
    analyze(file: Blob | Uint8Array, { onProgress, signal, ...options }?: AnalyzeOptions & {
        onProgress?: (progress: Progress) => void;
        signal?: AbortSignal;
    }): Promise<Verdict>;
    /**
     * Send a file; its analysis may be over already, where the service knows its result.
     *
     * @param {Blob | Uint8Array} file
     * @param {AnalyzeOptions} [options]
     * @param {{signal?: AbortSignal, idempotencyKey?: string}} [request]
     * @returns {Promise<Analysis>}
     */
    begin(file: Blob | Uint8Array, options?: AnalyzeOptions, { signal, idempotencyKey }?: {
        signal?: AbortSignal;
        idempotencyKey?: string;
    }): Promise<Analysis>;
    /**
     * Follow an analysis until it is over. A connection that breaks is made again, behind the last event; a service that
     * is away is waited for, up to a minute.
     *
     * @param {string} id
     * @param {{signal?: AbortSignal}} [options]
     * @returns {AsyncGenerator<AnalysisEvent, void, void>}
     */
    events(id: string, options?: {
        signal?: AbortSignal;
    }): AsyncGenerator<AnalysisEvent, void, void>;
    /**
     * Begin to watch a live source: an RTSP camera, an HLS playlist, or another stream at http or https.
     *
     * @param {string} url
     * @param {WatchOptions} [options]
     * @returns {Promise<Watch>}
     */
    watch(url: string, options?: WatchOptions): Promise<Watch>;
    /**
     * Follow a watch until it is over, as `events` follows an analysis.
     *
     * @param {string} id
     * @param {{signal?: AbortSignal}} [options]
     * @returns {AsyncGenerator<WatchEvent, void, void>}
     */
    watchEvents(id: string, options?: {
        signal?: AbortSignal;
    }): AsyncGenerator<WatchEvent, void, void>;
    /** @param {string} id @returns {Promise<Watch>} with its latest verdict */
    getWatch(id: string): Promise<Watch>;
    /** @returns {Promise<Schemas["WatchesDocument"]>} newest first */
    listWatches(): Promise<Schemas["WatchesDocument"]>;
    /** End a watch; its latest verdict stays. @param {string} id @returns {Promise<Watch>} */
    endWatch(id: string): Promise<Watch>;
    /** Remove a watch with its verdicts. @param {string} id @returns {Promise<void>} */
    deleteWatch(id: string): Promise<void>;
    /** @param {string} id @returns {Promise<Analysis>} */
    get(id: string): Promise<Analysis>;
    /** @param {Filters} [filters] @returns {Promise<Schemas["AnalysesDocument"]>} a page, newest first */
    list(filters?: Filters): Promise<Schemas["AnalysesDocument"]>;
    /** @param {string} id @returns {Promise<Analysis>} */
    cancel(id: string): Promise<Analysis>;
    /** Remove an analysis with its file, report and result. @param {string} id @returns {Promise<void>} */
    delete(id: string): Promise<void>;
    /** @returns {Promise<Schemas["ModelsDocument"]["models"]>} */
    models(): Promise<Schemas["ModelsDocument"]["models"]>;
    /**
     * What was used, by key and day.
     *
     * @param {Period} [period] days as `YYYY-MM-DD`, both included; the last 30 by default
     * @returns {Promise<Schemas["UsageDocument"]>}
     */
    usage(period?: Period): Promise<Schemas["UsageDocument"]>;
    #private;
}
export type Schemas = import("./schema.d.ts").components["schemas"];
export type Paths = import("./schema.d.ts").paths;
export type Analysis = Schemas["AnalysisDocument"];
export type Verdict = Schemas["Verdict"];
export type Progress = Schemas["ProgressDocument"];
export type AnalyzeOptions = NonNullable<Paths["/v1/analyses"]["post"]["parameters"]["query"]>;
export type Filters = NonNullable<Paths["/v1/analyses"]["get"]["parameters"]["query"]>;
export type Period = NonNullable<Paths["/v1/usage"]["get"]["parameters"]["query"]>;
export type Watch = Schemas["WatchDocument"];
export type RollingVerdict = Schemas["RollingDocument"];
export type WatchOptions = Partial<Omit<Schemas["WatchForm"], "url">>;
export type StatusEvent = {
    id: string;
    kind: "status";
    data: {
        status: Analysis["status"];
        reason?: string;
    };
};
export type ProgressEvent = {
    id: string;
    kind: "progress";
    data: Progress;
};
/**
 * `data` is empty where the analysis was deleted meanwhile
 */
export type EndEvent = {
    id: string;
    kind: "end";
    data: Partial<Analysis>;
};
export type AnalysisEvent = StatusEvent | ProgressEvent | EndEvent;
export type RollingEvent = {
    id: string;
    kind: "verdict";
    data: RollingVerdict;
};
/**
 * `data` is empty where the watch was deleted meanwhile
 */
export type WatchEndEvent = {
    id: string;
    kind: "end";
    data: Partial<Watch>;
};
export type WatchEvent = StatusEvent | RollingEvent | WatchEndEvent;
