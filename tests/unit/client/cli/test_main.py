"""The command line in-process: what a person cannot easily provoke from outside."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from checkout import ROOT
from media import astronaut
from numpy.typing import NDArray
from verdicts import inconclusive, verdict

from deepfake_client.analysis.pipeline import Progress
from deepfake_client.cli import exit_codes, groups
from deepfake_client.cli import main as cli
from deepfake_client.cli.progress import RunProgress
from deepfake_client.cli.render import headline
from deepfake_client.client import DeepfakeClient
from deepfake_client.report import page_path
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.table import COLUMNS, outcome_row
from deepfake_client.transport.protocol import ServedModel
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.errors import MediaOpenError, MissingExtraError, ModelNotFoundError
from deepfake_preprocess.support.extras import install_command


class InterruptingClient(DeepfakeClient):
    """A client without a server; Ctrl-C comes when it has analyzed as many inputs as `interrupt_after` says."""

    interrupt_after = 10**9

    def __init__(self, connection: Any = None, **options: Any) -> None:
        super().__init__(FakeTransport(), **options)

    def analyze_many(self, sources: Any, **options: Any) -> Iterator[Outcome]:  # type: ignore[override]
        for number, outcome in enumerate(super().analyze_many(sources, **options | {"ordered": True})):
            if number == self.interrupt_after:
                raise KeyboardInterrupt
            yield outcome


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three pictures, one of them of a face, which is the current one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, picture in (("a.png", astronaut()), ("b.png", np.zeros_like(astronaut())), ("c.png", astronaut())):
        cv2.imwrite(str(folder / name), picture[..., ::-1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(groups, "DeepfakeClient", InterruptingClient)
    monkeypatch.setattr(InterruptingClient, "interrupt_after", 10**9)
    return folder


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["analyze", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_ctrl_c_keeps_what_is_done_in_every_form(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(InterruptingClient, "interrupt_after", 2)
    code, out, err = run(capsys, "images", "--json", "--csv", "run.csv", "--report", "report")
    assert code == exit_codes.EXIT_INTERRUPTED
    assert [item["source"] for item in json.loads(out)] == ["images/a.png", "images/b.png"]
    assert "2 of 3 inputs were analyzed" in err
    assert "--resume" in err
    assert [row["source"] for row in read_csv(Path("run.csv").read_text())] == ["images/a.png", "images/b.png"]
    assert "images/b.png" in Path("report/index.html").read_text()
    assert len(Path("report/results.jsonl").read_text().splitlines()) == 2
    assert len(list(Path("report").glob("*/report.html"))) == 2

    monkeypatch.setattr(InterruptingClient, "interrupt_after", 10**9)
    missing = next(Path("report").glob("a.png-*/report.html"))
    hashed = hashlib.sha256(Path("images/a.png").read_bytes()).hexdigest()
    assert "Analyzed on" in missing.read_text()
    assert hashed in missing.read_text()
    missing.unlink()
    code, out, err = run(capsys, "images", "--jsonl", "--csv", "run.csv", "--report", "report", "--resume")
    assert code == exit_codes.EXIT_INCONCLUSIVE
    assert [json.loads(line)["source"] for line in out.splitlines()] == [f"images/{name}.png" for name in "abc"]
    assert len(read_csv(Path("run.csv").read_text())) == 3
    assert hashed in missing.read_text(), "a page that is not there is written"
    assert "Analyzed on" not in missing.read_text(), "nobody kept when that was"
    assert len(list(Path("report").glob("*/report.html"))) == 3


def test_ctrl_c_during_the_first_input_is_no_traceback(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(InterruptingClient, "interrupt_after", 0)
    code, out, err = run(capsys, "images", "--json")
    assert (code, json.loads(out)) == (exit_codes.EXIT_INTERRUPTED, [])
    assert "0 of 3" in err
    assert "--output FILE" in err, "says how the next run could be resumed"


class Swapping(FakeTransport):
    """Offers version 2 of its model, which is stricter, after `swap_after` requests, and version 1 no longer."""

    swap_after = 0

    async def describe(self, model: str) -> ServedModel:
        served = await super().describe(model)
        version = self._version()
        spec = dataclasses.replace(
            served.spec, threshold=0.25 * version, training_data=f"set {version}", checkpoint_sha256=str(version) * 64
        )
        return dataclasses.replace(served, version=version, spec=spec)

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        if model.version != self._version():
            raise ModelNotFoundError(f"the server has no version {model.version}")
        return await super().infer(model, faces, timeout_s=timeout_s)

    def _version(self) -> int:
        return 1 if len(self.batches) < self.swap_after else 2


@pytest.mark.parametrize("num_before", [1, 2])
def test_each_result_names_the_model_that_scored_it_when_the_server_gets_another(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], num_before: int
) -> None:
    cv2.imwrite("images/b.png", astronaut()[..., ::-1])
    monkeypatch.setattr(Swapping, "swap_after", num_before)
    monkeypatch.setattr(groups, "DeepfakeClient", lambda *_, **__: DeepfakeClient(Swapping()))
    options = ("--concurrency", 1, "--report", "report")
    code, out, err = run(capsys, "images", "--json", *options)
    verdicts = json.loads(out)
    assert (code, err) == (0, f"report: {Path('report/index.html')}\n")
    versions = [1] * num_before + [2] * (3 - num_before)
    assert [item["model"]["version"] for item in verdicts] == versions
    assert [item["threshold"] for item in verdicts] == [0.25 * version for version in versions]
    for item in verdicts:
        version = item["model"]["version"]
        page = page_path(item["source"], Path("report")).read_text(encoding="utf-8")
        assert f"set {version}" in page
        assert f"set {3 - version}" not in page
        assert str(version) * 64 in page
        assert json.loads((page_path(item["source"], Path("report")).parent / "verdict.json").read_text()) == item
    index = Path("report/index.html").read_text(encoding="utf-8")
    assert "version 1" in index
    assert "version 2" in index

    _, out, _ = run(capsys, "images", *options)
    assert re.findall(r"version (\d).*?(set \d)", out, re.DOTALL) == [("1", "set 1"), ("2", "set 2")]


def test_csv_goes_to_standard_output_and_quiet_prints_one_line_for_each_input(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "images", "--csv", "-", "--quiet")
    rows = read_csv(out)
    assert (code, err) == (exit_codes.EXIT_INCONCLUSIVE, "")
    assert tuple(rows[0]) == COLUMNS
    assert {row["label"] for row in rows} == {"FAKE", "INCONCLUSIVE"}, "white is fake, says the stand-in"
    code, out, err = run(capsys, "images", "--quiet")
    assert (code, err) == (exit_codes.EXIT_INCONCLUSIVE, "")
    assert sorted(line.split("\t")[2] for line in out.splitlines()) == sorted(row["source"] for row in rows)
    assert {line.split("\t")[0] for line in out.splitlines()} == {"FAKE", "INCONCLUSIVE"}


def test_a_script_can_tell_fake_from_real(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = next(line.split("\t")[2] for line in run(capsys, "images", "-q")[1].splitlines() if line[0] == "F")
    assert run(capsys, fake, "-q", "--exit-code")[0] == exit_codes.EXIT_FAKE
    assert run(capsys, fake, "-q")[0] == 0


def test_names_are_not_broken_where_there_is_no_terminal(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = images / f"{'a name with words ' * 9}.png"
    shutil.copy(next(images.glob("*.png")), long)
    out = run(capsys, "images")[1]
    assert long.name in out


def test_the_report_is_named(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"report: {Path('pages/index.html')}" in run(capsys, "images", "--report", "pages")[2]


def test_flags_do_not_look_as_if_they_took_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["analyze", "--help"], ["bench", "server", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert "bool" not in capsys.readouterr().out


def test_the_help_fills_a_terminal_of_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit):
        cli.main(["explain", "--help"])
    text = capsys.readouterr().out
    assert "Each score is compared with that of the server, and the" in text
    assert re.search(r"^ *deepfake explain clip.mp4 --top 6 --output-dir evidence/ *$", text, re.MULTILINE)


def test_every_input_is_taken_once(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "images/a.png", "images", "images/*.png", "--json")
    assert len(json.loads(out)) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["images", "--json", "--jsonl"], "--json and --jsonl would be mixed"),
        (["images", "--jsonl", "--csv", "-"], "--jsonl and --csv - would be mixed"),
        (["images", "--resume"], "--output FILE or --report DIR"),
        (["images", "--csv", "no/such/folder.csv"], "--csv no/such/folder.csv cannot be written (No such file"),
        (["images", "--output", "images/a.png"], "line 1 of images/a.png is not a result"),
        (["images", "--report", "images/a.png"], "is a file"),
        (["images", "--concurrency", "0"], "concurrency"),
        (["images", "--service", "http://127.0.0.1:9"], "--service is for the heatmaps of a report; add --explain"),
        (["images", "--checkpoint", "x.pt", "--report", "out"], "--checkpoint is for the heatmaps of a report; add"),
        (["images", "--explain"], "name its directory with --report DIR"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_done(
    images: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    before = sorted(images.parent.rglob("*"))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(re.sub(r"[│\n]", " ", err).split())
    assert sorted(images.parent.rglob("*")) == before


def test_a_report_without_its_extra_is_refused_before_anything_is_done(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("deepfake_client.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, out, err = run(capsys, "images", "--report", "report")
    assert (code, out) == (2, "")
    assert install_command("report") in err


def test_a_name_that_is_not_utf8_is_printed_as_json_can_hold_it(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"images/caf\xe9.png")
    (images / "a.png").rename(name)
    for option in ("--json", "--jsonl"):
        _, out, _ = run(capsys, name, option)
        assert json.loads(out)["source"] == name


def test_a_row_of_csv_holds_what_the_columns_say() -> None:
    row = outcome_row(Outcome("x.mp4", verdict=verdict("x.mp4")))
    assert set(row) == set(COLUMNS) - {"error_type", "error"}
    assert (row["interval_low"], row["agreeing_share"], row["longest_run"]) == (0.8, 1.0, 4)
    assert "interval_low" not in outcome_row(Outcome("x.mp4", verdict=inconclusive("x.mp4")))
    failed = outcome_row(Outcome("x.mp4", error=MediaOpenError("x.mp4 is empty")))
    assert failed == {"source": "x.mp4", "error_type": "MediaOpenError", "error": "x.mp4 is empty"}


def test_a_spreadsheet_takes_no_name_for_a_formula(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images.parent / "=HYPERLINK(1).png").write_bytes((images / "a.png").read_bytes())
    _, out, _ = run(capsys, "=HYPERLINK(1).png", "--csv", "-")
    assert read_csv(out)[0]["source"] == "'=HYPERLINK(1).png"


def test_the_bar_shows_inputs_frames_faces_and_verdicts() -> None:
    from rich.console import Console

    screen = Console(file=io.StringIO(), force_terminal=True, width=160)
    with RunProgress(screen, 3, visible=True) as progress:
        progress.frame_done("videos/one [draft].mp4", Progress(3, 32, 5))
        progress.input_done(Outcome("zero.mp4", verdict=verdict("zero.mp4")))
        progress.input_done(Outcome("none.mp4", error=MediaOpenError("it is empty")))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue())  # type: ignore[attr-defined]
    for fact in ("one [draft].mp4", "3/32", "5 faces", "2/3", "1 FAKE", "1 failed"):
        assert fact in shown, fact
    hidden = Console(file=io.StringIO(), force_terminal=True)
    with RunProgress(hidden, 3, visible=False) as progress:
        progress.frame_done("one.mp4", Progress(3, 32, 5))
    assert hidden.file.getvalue().strip() == ""  # type: ignore[attr-defined]


def test_the_manual_names_every_column_of_csv() -> None:
    manual = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    for column in COLUMNS:
        assert f"`{column}`" in manual, column


def test_a_missing_part_is_reported_with_its_pip_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "export", cli.Command("deepfake_absent.cli:export", "absent", "export"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "x.pt"])
    assert stopped.value.code == MissingExtraError.exit_code == 2
    assert install_command("export") in capsys.readouterr().err


@pytest.mark.parametrize("handed_over", [True, False])
def test_ctrl_c_while_work_is_handed_over_to_the_loop_is_clean(
    images: Path, monkeypatch: pytest.MonkeyPatch, handed_over: bool
) -> None:
    client = DeepfakeClient(FakeTransport())
    hand_over, calls = client._loop.loop.call_soon_threadsafe, []

    def interrupted_once(callback: Any, *arguments: Any) -> None:
        calls.append(callback)
        if len(calls) == 2:
            if handed_over:
                hand_over(callback, *arguments)
            raise KeyboardInterrupt
        hand_over(callback, *arguments)

    with client:
        outcomes = client.analyze_many(["images"])
        assert next(outcomes).verdict is not None
        monkeypatch.setattr(client._loop.loop, "call_soon_threadsafe", interrupted_once)
        calls.append(None)
        with pytest.raises(KeyboardInterrupt):
            next(outcomes)


def test_the_headline_names_the_deciding_face_where_there_are_several() -> None:
    several = verdict("clip.mp4", score=0.9)
    assert "face 1" in headline(several).plain
    assert "face" not in headline(dataclasses.replace(several, tracks=several.tracks[:1])).plain


@pytest.mark.parametrize("words", [[], ["analyze"], ["gateway", "keys", "list"]])
def test_help_has_the_short_name_that_messages_give_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "-h"])
    assert (end.value.code, "--help" in capsys.readouterr().out) == (0, True)
