"""What a scan leaves, in a folder and in a bucket of a real server: parts, each input once, and their upkeep."""

import gzip
import json
from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest
from object_store import SCHEMES, put, served_bucket
from verdicts import inconclusive, verdict

from deepfake_client.result.outcome import Outcome
from deepfake_client.result.table import outcome_row
from deepfake_preprocess.errors import InputError, MediaNotFoundError, MediaOpenError, OptionError
from deepfake_scan.inputs.listing import each_input
from deepfake_scan.results.parts import ResultRow, part_names, read_json, read_part, write_part
from deepfake_scan.results.upkeep import compact, count, done_ids, forget_failed
from deepfake_scan.storage import open_object, open_storage


@pytest.fixture(params=["folder", *SCHEMES])
def storage(request, tmp_path, monkeypatch):
    if request.param == "folder":
        yield open_storage(str(tmp_path / "results"))
    else:
        with served_bucket(monkeypatch, request.param) as (address, _):
            yield open_storage(f"{address}/results")


def row(number, outcome=None):
    outcome = outcome or Outcome(f"{number}.mp4", verdict=verdict(f"{number}.mp4"))
    tracks = [track.to_dict() for track in outcome.verdict.tracks] if outcome.verdict else None
    cells = outcome_row(outcome)
    return ResultRow(f"{number:032x}", cells, json.dumps(outcome.to_dict()), datetime.now(UTC), tracks)


def failed(number):
    return row(number, Outcome(f"{number}.mp4", error=MediaOpenError("it is damaged")))


def everything(storage):
    """All ids with the source that the JSON beside has for each."""
    found = []
    for name in part_names(storage):
        sources = [json.loads(line)["source"] for line in gzip.decompress(read_json(storage, name)).splitlines()]
        found += zip(read_part(storage, name, ["id"]).column("id").to_pylist(), sources, strict=True)
    return sorted((int(one, 16), source) for one, source in found)


def test_a_part_has_a_row_and_a_line_for_each_input(storage):
    name = write_part(storage, [row(1), failed(2), row(3, Outcome("3.mp4", inconclusive("3.mp4")))], faces=True)
    first, second, third = read_part(storage, name).to_pylist()
    assert (first["address"], first["label"], first["fake_probability"]) == ("1.mp4", "FAKE", 0.9)
    assert [face["fake_probability"] for face in first["faces"]] == [0.9, 0.2]
    assert (second["label"], second["error_type"], second["error"]) == (None, "MediaOpenError", "it is damaged")
    assert (third["label"], third["reason"]) == ("INCONCLUSIVE", "no_face")
    assert everything(storage) == [(1, "1.mp4"), (2, "2.mp4"), (3, "3.mp4")]
    assert write_part(storage, [row(1), failed(2), row(3)], faces=False) == name
    counts = count(storage)
    assert (counts.rows, counts.parts, counts.failures.total()) == (3, 1, 1)


def test_what_is_there_twice_is_removed_once(storage):
    for numbers in ([1, 2], [2, 3], [3], [4]):
        write_part(storage, [row(number) for number in numbers], faces=False)
    assert len(done_ids(storage)) == 4
    assert everything(storage) == [(number, f"{number}.mp4") for number in (1, 2, 3, 4)]


def test_parts_are_joined_and_nothing_is_lost(storage):
    for number in range(6):
        write_part(storage, [row(2 * number), failed(2 * number + 1)], faces=False)
    before = everything(storage)
    assert compact(storage, rows=8) == (6, 2)
    assert everything(storage) == before
    assert (count(storage).rows, count(storage).failures.total()) == (12, 6)
    assert forget_failed(storage) == 6
    assert [number for number, _ in everything(storage)] == [0, 2, 4, 6, 8, 10]


def test_an_empty_place_has_no_results(storage):
    assert len(done_ids(storage)) == count(storage).rows == forget_failed(storage) == 0
    assert compact(storage) == (0, 0)


def test_parts_are_one_table_for_other_programs(tmp_path):
    storage = open_storage(str(tmp_path))
    for number in range(3):
        write_part(storage, [row(number)], faces=False)
    assert pq.read_table(tmp_path / "parts").num_rows == 3


def test_a_full_place_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "parts").write_text("a file")
    with pytest.raises(OptionError, match="cannot be written"):
        write_part(open_storage(str(tmp_path)), [row(1)], faces=False)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_objects_of_a_bucket_are_inputs(monkeypatch, scheme):
    with served_bucket(monkeypatch, scheme) as (address, store):
        for path in ("in/a.mp4", "in/deep/b.mp4", "in/notes.txt", "other/c.mp4"):
            put(store, path, path.encode())
        found = list(each_input([f"{address}/in/"]))
        assert [one.address for one in found] == [f"{address}/in/a.mp4", f"{address}/in/deep/b.mp4"]
        assert [one.address for one in each_input([f"{address}/*/[ac].mp4"])] == [
            f"{address}/in/a.mp4", f"{address}/other/c.mp4",
        ]  # fmt: skip
        assert [one.address for one in each_input([f"{address}/in/a.mp4"])] == [f"{address}/in/a.mp4"]
        put(store, "in/a.mp4", b"changed")
        assert next(each_input([f"{address}/in/a.mp4"])).version != found[0].version
        with open_object(f"{address}/other/c.mp4") as file:
            assert file.read(5) == b"other"
            assert file.seek(-4, 2) == 7
            assert file.read() == b".mp4"
        with pytest.raises(MediaNotFoundError, match="no video or image"):
            each_input([f"{address}/nothing/"])
        with pytest.raises(MediaNotFoundError, match="there is no"):
            open_object(f"{address}/gone.mp4")
        with pytest.raises(InputError, match="//not-there-at-all"):
            each_input([f"{scheme}://not-there-at-all/x/"])
