"""What is scanned: which addresses a source stands for, and the ids that make a result count once."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from verdicts import MODEL

from deepfake_preprocess.errors import MediaNotFoundError, OptionError
from deepfake_scan.inputs.ids import IdMaker, IdSet, ScanInput, id_texts, ids_of_texts
from deepfake_scan.inputs.listing import each_input
from deepfake_scan.inputs.todo import Todo
from deepfake_scan.tally import ScanTally


def ids_of(numbers):
    return np.array([[number // 7, number % 7] for number in numbers], np.uint64).reshape(-1, 2)


def test_a_set_of_ids_says_which_are_new_and_of_equal_ones_the_first():
    found = IdSet()
    assert found.add(ids_of([5, 3, 5, 12])).tolist() == [True, True, False, True]
    assert found.add(ids_of([3, 4, 12, 4])).tolist() == [False, True, False, False]
    assert found.add(ids_of([])).tolist() == []
    assert len(found) == 4


def test_a_set_of_ids_agrees_with_a_set_of_python():
    random = np.random.default_rng(3)
    ours, pythons = IdSet(), set()
    for _ in range(60):
        numbers = random.integers(0, 2000, 50).tolist()
        expected = []
        for number in numbers:
            expected.append(number not in pythons)
            pythons.add(number)
        assert ours.add(ids_of(numbers)).tolist() == expected
    assert len(ours) == len(pythons)


def test_ids_follow_from_address_version_model_and_settings():
    def id_of(address="a", version="1", settings=None, model=MODEL):
        return id_texts(IdMaker(model, settings or {"fps": 1}).ids([ScanInput(address, version)]))[0]

    assert id_of() == id_of()
    assert len({id_of(), id_of(address="b"), id_of(version="2"), id_of(settings={"fps": 2})}) == 4
    assert ids_of_texts("".join([id_of(), id_of("b")]).encode()).shape == (2, 2)
    assert id_texts(ids_of_texts(id_of().encode())) == [id_of()]


def test_a_folder_is_its_media_and_a_changed_file_is_another_input(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.mp4", "1.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"one")
    found = list(each_input([str(tmp_path)]))
    assert [one.address for one in found] == [str(tmp_path / "1.JPG"), str(tmp_path / "b/2.mp4")]
    (tmp_path / "1.JPG").write_bytes(b"other")
    assert next(iter(each_input([str(tmp_path)]))).version != found[0].version
    assert [one.address for one in each_input([f"{tmp_path}/**/*.mp4"])] == [str(tmp_path / "b/2.mp4")]


ROWS = [{"n": 1, "path": "a.mp4", "etag": "x"}, {"n": 2, "path": "https://host/b.mp4", "etag": "y"}]


def write_manifest(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_manifest_is_read_by_its_column(tmp_path, suffix):
    manifest = write_manifest(tmp_path / f"all.{suffix}", ROWS)
    expected = [ScanInput(str(tmp_path / "a.mp4"), "x"), ScanInput("https://host/b.mp4", "y")]
    assert list(each_input([manifest])) == expected
    assert list(each_input([manifest], "path")) == expected
    with pytest.raises(OptionError, match=r"no column of 'clip', but n, path, etag; name one as `column`"):
        each_input([manifest], "clip")


def test_what_is_missing_is_said_before_anything_is_done(tmp_path):
    (tmp_path / "damaged.parquet").write_bytes(b"no")
    with pytest.raises(MediaNotFoundError, match="no video or image"):
        each_input([str(tmp_path)])
    with pytest.raises(MediaNotFoundError, match="no video or image"):
        each_input([str(tmp_path / "*.mp4")])
    with pytest.raises(MediaNotFoundError, match="there is no"):
        each_input([str(tmp_path / "gone.mp4")])
    with pytest.raises(OptionError, match="cannot be read"):
        each_input([str(tmp_path / "damaged.parquet")])


def test_what_is_done_or_named_twice_is_left_out():
    maker, done, tally = IdMaker(MODEL, {}), IdSet(), ScanTally()
    done.add(maker.ids([ScanInput("b")]))
    with Todo(iter([ScanInput("a"), ScanInput("b"), ScanInput("a"), ScanInput("c")]), maker, done, tally) as todo:
        assert [item.input.address for item in todo] == ["a", "c"]
    assert (tally.listed, tally.skipped, tally.total) == (4, 2, 4)


def test_an_error_of_the_listing_is_raised_where_inputs_are_taken():
    def inputs():
        yield ScanInput("a")
        raise OptionError("the manifest has a row without an address")

    with Todo(inputs(), IdMaker(MODEL, {}), IdSet(), ScanTally()) as todo, pytest.raises(OptionError):
        list(todo)
