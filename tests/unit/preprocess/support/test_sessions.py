import pytest

from deepfake_preprocess.errors import ExportError
from deepfake_preprocess.support.sessions import open_session


def test_a_file_and_its_content_give_the_same_session(shared_graph):
    of_file, of_content = open_session(shared_graph, threads=2), open_session(shared_graph.read_bytes())
    assert [item.name for item in of_file.get_inputs()] == [item.name for item in of_content.get_inputs()]
    assert of_file.get_session_options().intra_op_num_threads == 2


def test_sessions_spin_only_on_request_and_never_between_calls(shared_graph):
    for spinning in (False, True):
        options = open_session(shared_graph, spinning=spinning).get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_what_is_not_a_graph_is_an_export_error_that_names_it(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load model\.onnx"):
        open_session(path)
    with pytest.raises(ExportError, match="ONNX Runtime cannot load the graph"):
        open_session(b"nothing")


@pytest.fixture(scope="module")
def shared_graph():
    from importlib.resources import files

    return files("deepfake_preprocess.faces") / "weights" / "pnet.onnx"
