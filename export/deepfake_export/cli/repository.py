"""`deepfake repository`: thin shells around `deepfake_export.repository`; no PyTorch, no server."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepfake_export.repository.activation import activate
from deepfake_export.repository.listing import ModelInfo, VersionInfo, inspect_repository
from deepfake_export.repository.pruning import Pruning
from deepfake_export.repository.pruning import prune as prune_model
from deepfake_export.repository.verification import RepositoryProblem
from deepfake_export.tensorrt.plans import plan_target
from deepfake_preprocess.cli.console import results_console, shown
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, JsonOption, RepositoryOption
from deepfake_preprocess.contract.version_files import PLAN_FILE
from deepfake_preprocess.errors import OptionError, RepositoryError
from deepfake_preprocess.support.engines import ONNX_RUNTIME

app = typer.Typer(
    help="""Manage a model repository: its versions, which one is served, whether everything is intact.

    `deepfake export` adds versions; the newest export is served. Every command
    works while servers run; `deepfake serve` takes changes after SIGHUP, or
    with --watch by itself, other servers when they are started again.

    [bold]Examples[/]

      deepfake repository list

      deepfake repository verify my_detector

      deepfake repository rollback my_detector

      deepfake repository prune my_detector --keep 3 --dry-run

    [bold]Exit codes[/]  0 done, or everything is intact · 2 something is wrong; the
    message says what to do
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]


@app.command("list")
def list_models(repository: RepositoryOption = DEFAULT_REPOSITORY, as_json: JsonOption = False) -> None:
    """Show models and versions, which one is served, and what is damaged.

    Every file is compared with its manifest. Damaged and incomplete models are
    shown, with the reason below the table. `size` is that of all files of a version.
    """
    models = inspect_repository(repository)
    if as_json:
        _print_json([model.to_dict() for model in models])
        return
    console = results_console(soft_wrap=True)
    if not models:
        console.print(f"{shown(repository)} holds no model; put one there with `deepfake export`")
        return
    console.print(_table(models))
    problems = [problem for model in models for problem in model.all_problems]
    if problems:
        console.print()
        _print_problems(console, problems)


@app.command()
def verify(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models to check. Default: all.")
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    plans_for: Annotated[
        str | None,
        typer.Option(
            metavar="TENSORRT/CAPABILITY",
            help="TensorRT and GPU that load the plans, as 11.4.0/8.9. Default: this machine's, where it has both.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every version against its manifest, and every configuration against its version.

    Says per file what is wrong and what to do. TensorRT plans must be for the
    TensorRT and the GPU that will load them. Exit code 0 when nothing is wrong, 2
    otherwise; what is not served, such as a plan of an older version or what a
    killed export left behind, is reported, and counts only where it keeps
    NVIDIA's container from starting.
    """
    target = plan_target() if plans_for is None else _parse_target(plans_for)
    found = inspect_repository(repository, models or (), plan_target=target)
    problems = [problem for model in found for problem in model.all_problems]
    wrong = [problem for problem in problems if not problem.harmless]
    if as_json:
        _print_json(
            {
                "repository": str(repository),
                "ok": not wrong,
                "plans_checked_for": None if target is None else "/".join(target),
                "models": [model.to_dict() for model in found],
                "problems": [problem.to_dict() for problem in problems],
            }
        )
    else:
        console = results_console(soft_wrap=True)
        versions = sum(len(model.versions) for model in found)
        _print_problems(console, problems)
        if target is None and any(list((repository / model.name).glob(f"*/{PLAN_FILE}")) for model in found):
            what = "plans were not compared with a TensorRT and a GPU, because this machine lacks them"
            console.print(f"[dim]note[/]  {what}; name those that will load them, as in --plans-for 11.4.0/8.9")
        result = f"[bold red]{len(wrong)} problem(s)[/]" if wrong else "[green]everything is intact[/]"
        console.print(f"{len(found)} model(s), {versions} version(s) checked: {result}")
    if wrong:
        raise typer.Exit(RepositoryError.exit_code)


@app.command()
def rollback(
    model: Model,
    version: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", help="Version to serve. Default: the one before.", min=1)
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    as_json: JsonOption = False,
) -> None:
    """Serve the previous version of a model again, or the one that is named.

    Nothing is deleted: its configurations are written for that version, with its
    threshold and input size. The next export serves its own version again.
    Naming the served version repairs damaged configurations.
    """
    result = activate(repository, model, version)
    if as_json:
        _print_json(result.to_dict())
        return
    console = results_console(soft_wrap=True)
    name = f"[bold]{shown(result.model)}[/]"
    if result.before == result.served:
        console.print(f"{name} serves version {result.served} as before; its configurations were written again.")
    else:
        console.print(f"{name} serves version {result.served} now, before: {result.before or 'unknown'}.")
    console.print(f"  written  {shown(', '.join(result.files))}")
    if result.before != result.served:
        console.print("A running server goes on with what it loaded: start it again to take the change.")
    if result.still_used_by:
        console.print(
            f"On this machine, these processes serve another version: {_numbers(result.still_used_by)}. "
            "`deepfake serve` takes this one with --watch, or after SIGHUP (kill -HUP)"
        )


@app.command()
def prune(
    model: Model,
    keep: Annotated[int, typer.Option("--keep", metavar="N", help="How many of the newest versions stay.", min=1)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    as_json: JsonOption = False,
) -> None:
    """Remove old versions of a model, never the served one nor one that a running `deepfake serve` uses."""

    def confirm(plan: Pruning) -> bool:
        if yes or not plan.removed:
            return True
        if not sys.stdin.isatty():
            raise OptionError("there is no terminal to ask on; add --yes to remove, or --dry-run to look first")
        return typer.confirm(f"Remove {_removal(plan)}?", err=True)

    plan = prune_model(repository, model, keep=keep, dry_run=dry_run, confirm=confirm)
    if as_json:
        _print_json(plan.to_dict())
        return
    console = results_console(soft_wrap=True)
    if not plan.removed:
        console.print(f"Nothing to remove: {_why_nothing(plan, keep)}.")
    elif plan.done:
        console.print(f"Removed {_removal(plan)}.")
    else:
        console.print(f"{'Would remove' if dry_run else 'Nothing was removed; it would be'} {_removal(plan)}.")
    if plan.removed:
        console.print(f"  kept  {_numbers(plan.kept)} (served: {_numbers(plan.served)})")


def _parse_target(text: str) -> tuple[str, str]:
    """Return the TensorRT version and the compute capability of ``11.4.0/8.9``."""
    version, _, capability = text.partition("/")
    if not capability:
        raise OptionError(f"--plans-for is {text!r}; allowed: a pair like 11.4.0/8.9")
    return version, capability


def _table(models: Sequence[ModelInfo]) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in ("model", "version", "served", "precision", "size", "date", "checkpoint", "threshold", "status"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("version", "size") else "left")
    for model in models:
        broken = [problem for problem in model.problems if not problem.harmless]
        for version in model.versions:
            served = f"yes, by {_numbers(version.in_use_by)}" if version.in_use_by else "yes"
            unserved = f"by {_numbers(version.in_use_by)}" if version.in_use_by else ""
            table.add_row(
                shown(model.name),
                str(version.version),
                served if version.served else unserved,
                shown(_form(version)),
                f"{version.size_bytes / 1e6:.1f} MB",
                version.created[:16].replace("T", " "),
                (version.checkpoint_sha256 or "-")[:8],
                "-" if version.threshold is None else f"{version.threshold:g}",
                "[red]damaged[/]" if version.status == "damaged" or (version.served and broken) else "[green]ok[/]",
            )
        if not model.versions:
            table.add_row(shown(model.name), "-", "", "-", "-", "", "-", "-", "[red]no version[/]")
    return table


def _form(version: VersionInfo) -> str:
    """Return the precision, and the engine where it is not the usual one."""
    if version.engine in (ONNX_RUNTIME, "-"):
        return version.precision
    return f"{version.precision} {version.engine}"


def _print_problems(console: Console, problems: Sequence[RepositoryProblem]) -> None:
    for problem in problems:
        mark = "[dim]note[/]" if problem.harmless else "[red]wrong[/]"
        console.print(f"{mark}  {shown(problem.file)}: {shown(problem.what)}")
        console.print(f"       {shown(problem.fix)}")


def _why_nothing(plan: Pruning, keep: int) -> str:
    newest, old = plan.kept[-keep:], plan.kept[:-keep]
    model = shown(plan.model)
    if not old:
        return f"{model} has {len(newest)} version(s) ({_numbers(newest)}), and --keep {keep} lets up to {keep} stay"
    return (
        f"of {model}, version(s) {_numbers(newest)} stay by --keep {keep}, and {_numbers(old)} because it is served"
    )


def _removal(plan: Pruning) -> str:
    return f"version(s) {_numbers(plan.removed)} of {plan.model} ({plan.freed_bytes / 1e6:.1f} MB)"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=2))
