"""`AsyncGatewayClient` and `GatewayClient`: files go to a verdict service, and its verdicts come back."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from deepfake_client.analysis.many import DEFAULT_CONCURRENCY, each_outcome
from deepfake_client.analysis.pipeline import OnProgress, Progress
from deepfake_client.async_client import OnVerdict
from deepfake_client.gateway.sending import (
    EncodedSource,
    content_of,
    error_of,
    fields_of,
    opened_here,
    pieces_of,
    understood,
)
from deepfake_client.gateway.watching import form_of, watched
from deepfake_client.options import AnalyzeOptions, WatchOptions
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Label, ModelIdentity, Verdict
from deepfake_client.sources.inputs import name_of
from deepfake_client.sources.threads import LoopThread, in_thread
from deepfake_client.transport.connection import Connection
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import (
    DeepfakeError,
    ModelNotFoundError,
    OptionError,
)
from deepfake_preprocess.media.remote import is_url
from deepfake_preprocess.support.extras import require_extra


@dataclass(frozen=True, slots=True)
class GatewayModel:
    """The detector that a verdict service analyzes with.

    Attributes:
        name: Triton model name.
        version: Triton model version.
        spec: its contract.
    """

    name: str
    version: int
    spec: ModelSpec

    @property
    def identity(self) -> ModelIdentity:
        """What a verdict of this model names."""
        return ModelIdentity(self.name, self.version, self.spec.checkpoint_sha256, self.spec.caution)


class AsyncGatewayClient:
    """Turns videos and images into verdicts with the help of a verdict service, which decodes them itself.

    ::

        async with AsyncGatewayClient("http://localhost:8080") as client:
            verdict = await client.analyze("clip.mp4")

    Verdicts are those of `AsyncDeepfakeClient`, and so are the errors: an input is opened here first, so what is not
    a video or an image is not sent. Belongs to one event loop. Nothing is contacted before the first call.

    Args:
        connection: address of the service, or a `Connection` to it. A key is the header
            ``authorization: Bearer KEY``.
        model: name of the model that the service shall use; it has one, and any other is refused.

    Raises:
        OptionError: the address, or a certificate file, cannot be used.
        MissingExtraError: the extra ``http`` is not installed.
    """

    def __init__(self, connection: Connection | str, *, model: str | None = None) -> None:
        http = require_extra("deepfake_client.gateway.http", extra="http")
        self._http = http.GatewayHttp(_connection_of(connection))
        self._wanted_model = model
        self._models: list[GatewayModel] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all connections. The service finishes what it was asked for, even if nobody waited for it."""
        await self._http.close()

    async def model(self) -> GatewayModel:
        """Return the model in use; the service is asked once.

        Raises:
            ModelNotFoundError: the service uses another one than the one that was asked for.
            ServerError: it cannot be reached or failed.
        """
        if not self._models:
            await self._ask_models()
        if not self._models:
            raise ModelNotFoundError(f"the gateway at {self._http.url} offers no model; look at its server")
        first = self._models[0]
        if self._wanted_model not in (None, first.name):
            raise ModelNotFoundError(
                f"the gateway at {self._http.url} analyzes with {first.name}; leave out `model`, or ask a gateway "
                f"that was started with {self._wanted_model}"
            )
        return first

    async def _ask_models(self) -> None:
        answer = await self._http.json("GET", "/v1/models")
        with understood(self._http.url):
            for item in sorted(answer["models"], key=lambda item: not item["is_default"]):
                model = GatewayModel(item["name"], item["version"], ModelSpec.from_dict(item["spec"]))
                if model not in self._models:
                    self._models.append(model)

    def model_of(self, verdict: Verdict) -> GatewayModel:
        """Return the model that gave a verdict of this client.

        Raises:
            ModelNotFoundError: the service did not offer it when it was asked.
        """
        for model in self._models:
            if model.identity == verdict.model:
                return model
        raise ModelNotFoundError(
            f"the verdict on {verdict.source} is of {verdict.model.name} version {verdict.model.version}, which the "
            f"gateway at {self._http.url} no longer offers; analyze again"
        )

    async def analyze(
        self,
        source: EncodedSource,
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        on_progress: OnProgress | None = None,
    ) -> Verdict:
        """Analyze one video or image.

        Canceling ends the analysis on the service as well.

        Args:
            source: path, address, content, or binary file.
            options: how it is analyzed; without `timeout_s`, and not at given times.
            on_progress: called in the event loop as the service says how far it is.

        Returns:
            The verdict; INCONCLUSIVE with a typed reason rather than a guess.

        Raises:
            InputError: the input cannot be opened, or the service refuses it or an option.
            ServerError: the service cannot be reached, asks for a key, or failed.
        """
        return await self._analyze(source, None, options, on_progress, None)

    async def _analyze(
        self,
        source: Any,
        name: str | None,
        options: AnalyzeOptions,
        on_progress: OnProgress | None,
        on_verdict: OnVerdict | None,
    ) -> Verdict:
        fields = fields_of(options)
        content = await in_thread(content_of, source)
        name = name or name_of(source) or "the given file"
        await self.model()
        async with opened_here(content, name, needed=on_verdict is not None) as media:
            analysis = await self._finished(content, name, fields, on_progress)
            if analysis.get("verdict") is None:
                raise error_of(analysis, name, self._http.url)
            with understood(self._http.url):
                verdict = replace(Verdict.from_dict(analysis["verdict"]), source=name)
            if all(model.identity != verdict.model for model in self._models):
                await self._ask_models()
            self.model_of(verdict)
            if on_verdict is not None and media is not None:
                await in_thread(on_verdict, verdict, media)
            return verdict

    async def _finished(
        self, content: str | bytes, name: str, fields: dict[str, str], on_progress: OnProgress | None
    ) -> dict[str, Any]:
        """Send an input and return its analysis once it is over."""
        sent: str | bytes
        query, headers = {**fields, "file_name": Path(name).name}, {"idempotency-key": secrets.token_hex(16)}
        if isinstance(content, str) and is_url(content):
            sent = json.dumps({"url": content, **fields}).encode()
            query, headers = {}, {**headers, "content-type": "application/json"}
        else:
            sent, headers["content-type"] = content, "application/octet-stream"
        size = len(sent) if isinstance(sent, bytes) else (await asyncio.to_thread(Path(sent).stat)).st_size
        headers["content-length"] = str(size)
        # With its key, an upload that may or may not have arrived can be sent once more.
        analysis: dict[str, Any] = await self._http.json(
            "POST", "/v1/analyses", query=query, headers=headers, body=lambda: pieces_of(sent)
        )
        address = f"/v1/analyses/{analysis.get('id')}"
        try:
            if analysis.get("status") in ("queued", "running"):
                async for event in self._http.events(f"{address}/events"):
                    if event.kind == "progress" and on_progress is not None:
                        on_progress(_progress_of(event.data))
                    elif event.kind == "end":
                        analysis = event.data
        except asyncio.CancelledError:
            with suppress(DeepfakeError):
                async with asyncio.timeout(2):
                    await self._http.json("POST", f"{address}/cancel")
            raise
        return analysis

    def analyze_many(
        self,
        sources: str | os.PathLike[str] | Iterable[EncodedSource],
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        concurrency: int = DEFAULT_CONCURRENCY,
        ordered: bool = False,
        on_progress: Callable[[str, Progress], None] | None = None,
        on_verdict: OnVerdict | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Analyze many inputs, some at once, and yield what became of each as it is finished.

        As `AsyncDeepfakeClient.analyze_many`, but for inputs that can be sent.

        Raises:
            OptionError: `concurrency` is below 1; raised by this call.
        """

        def analyze(source: Any, name: str, report: OnProgress | None) -> Coroutine[Any, Any, Verdict]:
            return self._analyze(source, name, options, report, on_verdict)

        return each_outcome(analyze, sources, concurrency=concurrency, ordered=ordered, on_progress=on_progress)

    async def watch(
        self, source: str, *, options: WatchOptions = WatchOptions(), duration_s: float | None = None
    ) -> AsyncGenerator[Verdict, None]:
        """Have a live source watched by the service, and yield the verdict on its last seconds as it changes.

        Leaving the loop ends the watch.

        Args:
            source: address of a camera (``rtsp``), a playlist or another stream (``http``, ``https``).
            options: how it is watched, as far as the service decides nothing of it itself.
            duration_s: how long at most; as long as the service allows when None.

        Yields:
            Verdicts as `AsyncDeepfakeClient.watch` does; the last one before the watch ends comes in any case.

        Raises:
            OptionError: an option that only who opens the source can take, or that the service refuses.
            InputError: the source cannot be opened, or broke off for good.
            ServerError: the service opens no addresses, cannot be reached, asks for a key, or failed.
        """
        form = form_of(source, options, duration_s)
        await self.model()
        verdicts = watched(self._http, form)
        async with aclosing(verdicts):
            async for verdict in verdicts:
                yield verdict


class GatewayClient:
    """`AsyncGatewayClient` for code that is not asynchronous: same arguments, same methods, same results.

    ::

        with GatewayClient("http://localhost:8080") as client:
            verdict = client.analyze("clip.mp4")
    """

    def __init__(self, connection: Connection | str, *, model: str | None = None) -> None:
        self._client = AsyncGatewayClient(connection, model=model)
        self._loop = LoopThread("this client")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """See `AsyncGatewayClient.close`. Closing twice is harmless."""
        self._loop.stop(self._client.close)

    def model(self) -> GatewayModel:
        """See `AsyncGatewayClient.model`."""
        return self._loop.wait_for(self._client.model())

    def model_of(self, verdict: Verdict) -> GatewayModel:
        """See `AsyncGatewayClient.model_of`."""
        return self._client.model_of(verdict)

    def analyze(
        self,
        source: EncodedSource,
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        on_progress: OnProgress | None = None,
    ) -> Verdict:
        """See `AsyncGatewayClient.analyze`; `on_progress` is called on the client's thread."""
        return self._loop.wait_for(self._client.analyze(source, options=options, on_progress=on_progress))

    def analyze_many(
        self,
        sources: str | os.PathLike[str] | Iterable[EncodedSource],
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        concurrency: int = DEFAULT_CONCURRENCY,
        ordered: bool = False,
        on_progress: Callable[[str, Progress], None] | None = None,
        on_verdict: OnVerdict | None = None,
    ) -> Generator[Outcome, None, None]:
        """See `AsyncGatewayClient.analyze_many`; leaving the loop over it cancels what is under way."""
        return self._loop.each(
            self._client.analyze_many(
                sources,
                options=options,
                concurrency=concurrency,
                ordered=ordered,
                on_progress=on_progress,
                on_verdict=on_verdict,
            )
        )

    def watch(
        self, source: str, *, options: WatchOptions = WatchOptions(), duration_s: float | None = None
    ) -> Generator[Verdict, None, None]:
        """See `AsyncGatewayClient.watch`; leaving the loop over it ends the watch."""
        return self._loop.each(self._client.watch(source, options=options, duration_s=duration_s))


def _connection_of(connection: Connection | str) -> Connection:
    if isinstance(connection, str):
        connection = Connection(url=connection if "://" in connection else f"http://{connection}")
    if connection.url is None or connection.address.protocol != "http":
        raise OptionError(
            f"`gateway` is {connection.url!r}; allowed: http://HOST:PORT or https://HOST:PORT, as `deepfake gateway` "
            "prints it"
        )
    return connection


def _progress_of(data: dict[str, Any]) -> Progress:
    label = data["label"]
    return Progress(**{**data, "label": None if label is None else Label[label]})
