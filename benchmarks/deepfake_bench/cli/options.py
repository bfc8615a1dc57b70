"""What the commands share: options, how lists of values are read, and tables of figures."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer
from rich.table import Table

from deepfake_preprocess.cli.console import results_console
from deepfake_preprocess.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from deepfake_bench.pipeline.usual import Peer

FACENET_REQUIREMENTS = "facenet-pytorch==2.6.0 requests tqdm urllib3 idna certifi charset-normalizer"

ClipsArgument: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="CLIP...", help="Videos, folders or patterns.", show_default=False)
]
ModelOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Model to measure; may be left out where there is one.")
]
OutputOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Results; by default benchmarks/results/MACHINE-NAME.json."),
]
PeerPathOption: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder that facenet-pytorch is installed in.")
]

Name = TypeVar("Name", bound=str)


def read_names(option: str, text: str, allowed: Iterable[Name]) -> list[Name]:
    """Return the names of a comma-separated list, each once; an `OptionError` where there is none, or another one."""
    known = {str(name): name for name in allowed}
    wanted = [item.strip() for item in text.split(",") if item.strip()]
    if not wanted or set(wanted) - set(known):
        raise OptionError(f"{option} is {text!r}; allowed: {', '.join(known)}, several with commas between")
    return [known[name] for name in dict.fromkeys(wanted)]


def read_numbers(option: str, text: str) -> list[float]:
    """Return the numbers of a comma-separated list, in its order; an `OptionError` for what is not above 0."""
    try:
        numbers = [float(item) for item in text.split(",") if item.strip()]
    except ValueError:
        numbers = [0.0]
    if not all(0 < number < float("inf") for number in numbers):
        raise OptionError(f"{option} is {text!r}; allowed: numbers above 0 with commas between, such as 1,8,32")
    return numbers


def read_counts(option: str, text: str) -> list[int]:
    """Return the numbers of a comma-separated list, in its order; an `OptionError` unless they are whole, from 1."""
    numbers = read_numbers(option, text)
    if any(number != int(number) for number in numbers):
        raise OptionError(f"{option} is {text!r}; allowed: whole numbers from 1 with commas between, such as 1,8,32")
    return [int(number) for number in numbers]


def find_clips(sources: Sequence[str]) -> list[Path]:
    """Return the files that sources stand for, as `deepfake analyze` takes them, each checked to open as a video."""
    # On a GPU host without PyAV, `bench gpu` must run.
    from deepfake_client.sources.inputs import expand
    from deepfake_preprocess.media.opening import open_media
    from deepfake_preprocess.media.remote import is_url

    clips = []
    for name in expand(sources):
        if is_url(name):
            raise OptionError(f"{name} is an address, but no network is measured; fetch it and give the file")
        with open_media(name, name=name) as media:
            if media.kind != "video":
                raise OptionError(f"{name} is an image; benchmarks of clips take videos")
        clips.append(Path(name))
    return clips


def load_facenet(path: Path | None, *, threads: int | None = None) -> Peer:
    """Return facenet-pytorch's face detector, from a folder or as it is installed; errors say how to install it."""
    from deepfake_bench.pipeline.usual import load_peer

    how = f"run `pip install --no-deps --target DIR {FACENET_REQUIREMENTS}` and give --peer-path DIR"
    if path is not None and not path.is_dir():
        raise OptionError(f"--peer-path {path}: there is no such folder; {how}")
    try:
        return load_peer(path, threads=threads)
    except ImportError as exc:
        raise MissingExtraError(f"facenet-pytorch cannot be imported ({exc}); {how}") from exc


class _Figures(string.Formatter):
    """Shows a dash for what there is no figure of."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return super().get_field(field_name, args, kwargs)
        except (KeyError, TypeError):
            return None, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        return "-" if value is None else str(super().format_field(value, format_spec))


def print_table(
    items: Iterable[Mapping[str, Any]],
    columns: Sequence[tuple[str, str]],
    *,
    left: int = 1,
    title: str | None = None,
    bold: str = "",
) -> None:
    """Print figures on standard output, one item in a row, uncut where that is not a terminal.

    A column is a heading and how an item's part is shown, as in ``{latency[p50_ms]:.1f}``; the first `left` ones are
    aligned to the left. Items stand out whose value named `bold` is true.
    """
    table, figures = Table(title=title, box=None, header_style="bold"), _Figures()
    for number, (heading, _) in enumerate(columns):
        table.add_column(heading, justify="left" if number < left else "right", no_wrap=number >= left)
    for item in items:
        style = "bold" if item.get(bold) else ""
        table.add_row(*(figures.vformat(form, (), item) for _, form in columns), style=style)
    results_console().print(table)
