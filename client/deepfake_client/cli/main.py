"""The `deepfake` command: mounts the commands of all parts, and turns errors into one sentence and an exit code.

Commands live in their own packages and are imported by name only when they are called, so `deepfake --help`
is quick and a base install needs neither torch nor a server.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from inspect import cleandoc
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from typer.main import get_command

from deepfake_client.cli.exit_codes import EXIT_INTERRUPTED
from deepfake_client.cli.option_names import with_options
from deepfake_client.cli.terminal import ReaderGoneError, checked_stdout
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.text import visible


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command lives.

    `target` is ``module:name`` of a function, which carries the options and the long help, or of a `typer.Typer` with
    sub-commands; `summary` its line in `deepfake --help`; `extra` brings it where the base install does not.
    """

    target: str
    summary: str
    extra: str | None = None

    def load(self) -> Callable[..., Any] | typer.Typer:
        """Import the function or group; MissingExtraError where its part of the project is not installed."""
        module, _, name = self.target.partition(":")
        found = require_extra(module, extra=self.extra) if self.extra else importlib.import_module(module)
        loaded: Callable[..., Any] | typer.Typer = getattr(found, name)
        return loaded


COMMANDS = {
    "analyze": Command(
        "deepfake_client.cli.analyze:analyze", "Say whether videos or images show a manipulated face."
    ),
    "watch": Command(
        "deepfake_client.cli.watch:watch", "Follow a camera, a stream or a growing file with a rolling verdict."
    ),
    "models": Command("deepfake_client.cli.server:models", "Show the detectors that a server offers."),
    "health": Command("deepfake_client.cli.server:health", "Ask a server whether it is alive and ready."),
    "serve": Command(
        "deepfake_serve.cli.serve:serve", "Serve a model repository on a real Triton, without Docker.", "serve"
    ),
    "export": Command(
        "deepfake_export.cli.export:export", "Turn a PyTorch checkpoint into a served model, with proof.", "export"
    ),
    "init-spec": Command(
        "deepfake_export.cli.init_spec:init_spec",
        "Write a first spec for a checkpoint, or a published one.",
        "export",
    ),
    "repository": Command(
        "deepfake_export.cli.repository:app", "Manage a model repository: versions, rollback, pruning.", "export"
    ),
    "tune": Command("deepfake_bench.cli.tune:tune", "Find how this machine serves a model fastest.", "bench"),
    "train": Command("deepfake_training.cli.train:train", "Train a detector; real faces alone are enough.", "train"),
    "pack-faces": Command(
        "deepfake_training.cli.train:pack_faces_command", "Find the faces in folders once, for `train`.", "train"
    ),
    "teach": Command(
        "deepfake_training.cli.teach:teach_command", "Write down what a large detector says, for `train`.", "train"
    ),
    "evaluate": Command(
        "deepfake_training.cli.evaluate:evaluate_command", "Measure a detector on labeled files.", "evaluate"
    ),
    "calibrate": Command(
        "deepfake_training.cli.calibrate:calibrate", "Fit the threshold to your own clips.", "evaluate"
    ),
    "evaluate-run": Command(
        "deepfake_training.cli.evaluate:evaluate_run", "Measure a training run on the faces it held out.", "train"
    ),
    "average-runs": Command(
        "deepfake_training.cli.train:average_runs_command", "Take the mean of several runs' best weights.", "train"
    ),
    "discount-blur": Command(
        "deepfake_training.cli.discount_blur:discount_blur_command",
        "Take out of a run's scores what faces without detail score.",
        "train",
    ),
    "publish-checkpoint": Command(
        "deepfake_training.cli.train:publish_checkpoint", "Write a run's best weights in half precision.", "train"
    ),
    "build-engines": Command(
        "deepfake_export.cli.engines:build_engines", "Build TensorRT plans on the machine with the GPU.", "export"
    ),
    "convert-meta-model": Command(
        "deepfake_export.cli.convert_meta_model:convert_meta_model",
        "Convert a pickled meta-model to plain numbers.",
        "ensemble",
    ),
    "bench": Command("deepfake_bench.cli.main:app", "Measure speed: server, comparisons, plots.", "bench"),
    "explain": Command(
        "deepfake_client.cli.explain:explain", "Show where the model saw the fake: heatmaps of a verdict."
    ),
    "explain-serve": Command(
        "deepfake_explain.cli.explain_serve:explain_serve", "Serve one checkpoint's heatmaps over HTTP.", "explain"
    ),
    "gateway": Command(
        "deepfake_gateway.cli.gateway:app", "Run the verdict service: web page, REST and durable jobs.", "gateway"
    ),
    "scan": Command("deepfake_scan.cli.scan:scan", "Verdicts on folders, buckets and manifests of any size.", "scan"),
    "demo-checkpoint": Command(
        "deepfake_export.cli.demo_checkpoint:demo_checkpoint",
        "Write a demo checkpoint, its spec and model card.",
        "export",
    ),
}

HELP_NAMES: Final = ["-h", "--help"]


def build_app(requested: str | None) -> typer.Typer:
    """Return the command line with the code of one command loaded and only the summaries of the others."""
    app = typer.Typer(
        name="deepfake",
        help="Deepfake detectors in production: export a checkpoint, serve it on Triton, get verdicts for videos.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": HELP_NAMES},
    )

    @app.callback()
    def root(
        version: Annotated[
            bool,
            typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
        ] = False,
    ) -> None:
        pass

    for name, command in COMMANDS.items():
        if name != requested:
            app.command(name, help=command.summary)(lambda: None)
        elif isinstance(loaded := command.load(), typer.Typer):
            app.add_typer(loaded, name=name)
        else:
            app.command(name)(loaded)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"deepfake-serving {metadata.version('deepfake-serving')}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `deepfake` command with `arguments` (those of the process when None); ends with SystemExit."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    requested = next((arg for arg in args if not arg.startswith("-")), None)
    try:
        with checked_stdout():
            command = get_command(build_app(requested))
            _tidy_help(command)
            command(args=args, prog_name="deepfake")
    except ReaderGoneError as exc:
        sys.exit(exc.exit_code)  # without a word, as other programs
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)  # while the command's code was loaded, which may take seconds
    except DeepfakeError as exc:
        print_error(exc)
        sys.exit(exc.exit_code)


def _tidy_help(command: Any) -> None:
    """Let paragraphs fill a terminal of any width, and flags look as if they took no value, which they do not."""
    if command.help:
        # What is indented, as examples are, stays as it is written.
        command.help = re.sub(r"(?<=\S)\n(?=[^\s\[])", " ", cleandoc(command.help))
    # A command keeps the first help option that it is asked for, so it is asked with the names of all.
    context = typer.Context(command, help_option_names=HELP_NAMES)
    for option in (*command.params, command.get_help_option(context)):
        if getattr(option, "is_flag", False):
            option.metavar = ""
    for inner in getattr(command, "commands", {}).values():
        _tidy_help(inner)


def print_error(error: DeepfakeError) -> None:
    """Print an error as one sentence on standard error, with options in place of parameters."""
    sentence = escape(visible(with_options(str(error))))
    with suppress(OSError):  # a full disk behind standard error leaves the exit code
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {sentence}")


if __name__ == "__main__":
    main()
