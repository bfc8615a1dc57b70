import pytest

from deepfake_preprocess.support.files import prepared, write_whole


def names_in(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize(
    "content",
    ["grün\n", "grün\n".encode(), memoryview("grün\n".encode()), lambda path: path.write_bytes("grün\n".encode())],
    ids=["text", "bytes", "memory", "a writer"],
)
def test_content_of_any_kind_replaces_the_file(tmp_path, content):
    path = tmp_path / "note.txt"
    path.write_text("old")
    write_whole(path, content)
    assert path.read_bytes() == "grün\n".encode()
    assert names_in(tmp_path) == ["note.txt"]


def test_a_writer_that_fails_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    def write(partial):
        partial.write_bytes(b"new, but not ")
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        write_whole(path, write)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["weights.bin"]


def test_a_file_gets_the_usual_mode_whatever_its_writer_does(tmp_path):
    path = tmp_path / "weights.bin"

    def write(partial):
        partial.write_bytes(b"x")
        partial.chmod(0o600)

    write_whole(path, write)
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_prepared_files_are_put_in_place_only_when_asked(tmp_path):
    path = tmp_path / "config"
    path.write_text("old")
    with prepared(path, "new"):
        assert path.read_text() == "old"
    assert path.read_text() == "old"
    with prepared(path, "new") as put_in_place:
        put_in_place()
        assert path.read_text() == "new"
    assert names_in(tmp_path) == ["config"]


def test_a_missing_folder_is_an_operating_system_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "file", "text")
