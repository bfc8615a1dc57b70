"""`deepfake explain`: the most suspicious faces of a video or image, with the heatmaps behind their scores."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from deepfake_client.cli.groups import AnalysisOptions, ExplainerOptions, ServerOptions
from deepfake_client.cli.terminal import json_text
from deepfake_client.explain.encoding import encode_png
from deepfake_client.explain.findings import ExplainedFace
from deepfake_client.explain.sheet import contact_sheet, heat_in_words
from deepfake_client.explain.types import DEFAULT_METHOD, METHODS, ExplainOptions
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Verdict
from deepfake_client.sources.inputs import open_source
from deepfake_preprocess.cli.console import results_alone
from deepfake_preprocess.cli.grouping import with_groups
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.text import reason_of, visible

SHEET_NAME = "contact_sheet.png"
DATA_NAME = "explanation.json"


@with_groups
def explain(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A video or an image.")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where the pictures and the JSON go.")
    ],
    server: ServerOptions,
    analysis: AnalysisOptions,
    explainer: ExplainerOptions,
    top: Annotated[int, typer.Option(min=1, help="At most that many frames of each face.")] = 3,
    verdict: Annotated[
        Path | None, typer.Option(help="What `deepfake analyze --json` said, instead of analyzing again.")
    ] = None,
    method: Annotated[str, typer.Option(help=f"How: {', '.join(METHODS)}.")] = DEFAULT_METHOD,
    layer: Annotated[
        str | None, typer.Option(help="Target layer; MEMBER:LAYER for an ensemble. [default: the last feature map]")
    ] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Measure deletion and insertion curves (slow).")
    ] = False,
    sanity: Annotated[bool, typer.Option("--sanity", help="Compare with randomized weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON as well.")] = False,
) -> None:
    """Show where the model saw the fake, in the most suspicious frames of each face.

    Writes each crop, its heatmap over it and over the frame, a contact sheet and a JSON. Each score is compared with
    that of the server, and the checkpoint with the served one, before a heatmap is given.

    [bold]Examples[/]

      deepfake explain clip.mp4 --top 6 --output-dir evidence/
      deepfake explain clip.mp4 --output-dir evidence/ --checkpoint detector.safetensors --method hires-cam
    """
    options = ExplainOptions(method, layer, faithfulness, sanity)
    known = None if verdict is None else _read_verdict(verdict)
    _make_directory(output_dir)
    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    # Opened before any server is asked: a bad input is reported whether or not one is running.
    with results_alone(), ExitStack() as stack:
        media = stack.enter_context(open_source(path))
        with screen.status("loading the checkpoint" if explainer.checkpoint else "starting"):
            opened = stack.enter_context(closing(explainer.open()))
        client = stack.enter_context(server.client(screen.status))
        if known is None:
            with screen.status(f"analyzing {escape(visible(path))}"):
                known = client.analyze(media, options=analysis)
        with screen.status("explaining"):
            faces = client.explain(known, media, top=top, explainer=opened, options=options)
    data = _write(output_dir, known, faces)
    if as_json:
        print(json_text(data, indent=2))
    else:
        _print_summary(Console(highlight=False, soft_wrap=True), output_dir, known, faces)


def _read_verdict(path: Path) -> Verdict:
    if path.exists() and not path.is_file():
        raise OptionError(f"{path} is not a file; name one that `deepfake analyze PATH --json` wrote")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        outcome = Outcome.from_dict(data)
    except FileNotFoundError:
        raise OptionError(f"{path}: there is no such file; `deepfake analyze PATH --json` writes verdicts") from None
    except (OSError, ValueError, AttributeError) as exc:
        raise OptionError(
            f"{path} is not a verdict of `deepfake analyze PATH --json` for one input ({reason_of(exc)})"
        ) from exc
    if outcome.verdict is None:
        raise OptionError(f"{path} holds an error and no verdict: {outcome.error}")
    return outcome.verdict


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OptionError(f"--output-dir {path} cannot be made ({exc.strerror}); name another folder") from exc


def _write(output: Path, verdict: Verdict, faces: tuple[ExplainedFace, ...]) -> dict[str, Any]:
    """Write all pictures and the JSON; returns its data."""
    entries = []
    try:
        for face in faces:
            stem = f"face{face.pick.face.track + 1}_{face.pick.frame.pts_seconds:08.3f}s"
            pictures = {
                "crop": face.crop,
                "crop_overlay": face.explanation.overlay,
                "frame_overlay": face.overlay_in_frame(),
            }
            for kind, picture in pictures.items():
                (output / f"{stem}_{kind}.png").write_bytes(encode_png(picture))
            entries.append({**face.to_dict(), **{kind: f"{stem}_{kind}.png" for kind in pictures}})
        (output / SHEET_NAME).write_bytes(encode_png(contact_sheet(verdict, faces)))
        data = {
            "source": verdict.source,
            "label": verdict.label.value,
            "fake_probability": verdict.fake_probability,
            "threshold": verdict.threshold,
            "model": verdict.model.to_dict(),
            "contact_sheet": SHEET_NAME,
            "faces": entries,
        }
        (output / DATA_NAME).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as exc:
        raise OptionError(f"{output} cannot be written ({exc.strerror}); name another with --output-dir") from exc
    return data


def _print_summary(console: Console, output: Path, verdict: Verdict, faces: tuple[ExplainedFace, ...]) -> None:
    score = "" if verdict.fake_probability is None else f" {verdict.fake_probability:.4f}"
    console.print(f"{escape(visible(verdict.source))}: {verdict.label.value}{score}")
    for face in faces:
        found = face.explanation
        probability = found.fake_probability if found.served_probability is None else found.served_probability
        console.print(
            f"  face {face.pick.face.track + 1}  {face.pick.frame.pts_seconds:.2f} s  "
            f"fake probability {probability:.4f}; {heat_in_words(found)}"
        )
    console.print(f"Wrote {len(faces)} faces, {SHEET_NAME} and {DATA_NAME} to {escape(str(output))}")
