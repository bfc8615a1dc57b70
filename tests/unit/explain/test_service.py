"""The explain service on a real socket: its answers, its limits, and one sentence for everything it refuses."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import uvicorn
from explain_nets import OTHER_SHA, SHA, SIDE_PX, tiny_explainer
from media import astronaut

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.explain.draw import encode_png
from deepfake_client.explain.service import ServiceExplainer
from deepfake_client.explain.types import ExplainOptions, ServedScores
from deepfake_client.explain.wire import NPZ_TYPE, explanation_from_npz, explanation_to_npz
from deepfake_client.transport.retry import NO_RETRY
from deepfake_client.transport.testing import FakeTransport
from deepfake_explain.service import app as service_module
from deepfake_explain.service.app import Agreement, Limits, build_app
from deepfake_export.proof.crops import generate_crops
from deepfake_preprocess.errors import (
    ExplainDisagreementError,
    InferenceError,
    OptionError,
    ServerBusyError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.frame import ArrayFrame

CROPS = generate_crops(6, (SIDE_PX, SIDE_PX), seed=5)
LIMITS = Limits(max_upload_bytes=2**20, max_pixels=2**20)


@contextmanager
def running(explainer=None, **options):
    """Yield the port of a service on a free one, with its uvicorn in a thread."""
    app = build_app(explainer or tiny_explainer(), MtcnnDetector(), **{"limits": LIMITS, **options})
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def port():
    with running() as port:
        yield port


def form(fields=None, **files):
    """Return body and content type of a multipart form."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (fields or {}).items()
    ]
    for name, data in files.items():
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'
        parts += [head.encode(), data, b"\r\n"]
    return b"".join([*parts, b"--edge--\r\n"]), "multipart/form-data; boundary=edge"


def ask(port, method="POST", path="/v1/explain", body=b"", content_type="", accept=""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {name: value for name, value in (("Content-Type", content_type), ("Accept", accept)) if value}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def post(port, fields=None, accept="application/json", **files):
    body, content_type = form(fields, **files)
    return ask(port, body=body, content_type=content_type, accept=accept)


def problem_of(answer, data):
    """Return the sentence of a problem+json."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = json.loads(data)
    assert found["status"] == answer.status
    assert found["title"]
    assert "\n" not in found["detail"]
    assert "Traceback" not in found["detail"]
    return found["detail"]


def test_a_crop_is_answered_as_json_png_or_npz_with_what_the_library_gives(port):
    (expected,) = tiny_explainer().explain(CROPS[:1], ExplainOptions("hires-cam"))
    png = encode_png(CROPS[0])
    answer, data = post(port, {"method": "hires-cam"}, crop=png)
    assert answer.status == 200
    facts = json.loads(data)
    assert facts["fake_probability"] == pytest.approx(expected.fake_probability, abs=1e-6)
    assert (facts["method"], facts["layer"], facts["checkpoint_sha256"]) == ("hires-cam", "4", SHA)
    answer, data = post(port, {"method": "hires-cam"}, accept="image/png", crop=png)
    picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(picture, expected.overlay)
    answer, data = post(port, {"method": "hires-cam"}, accept=NPZ_TYPE, crop=png)
    np.testing.assert_array_equal(explanation_from_npz(data).heatmap, expected.heatmap)
    # Further arrays are for those who read the file without our client.
    np.testing.assert_array_equal(np.load(io.BytesIO(data))["crop"], CROPS[0])


def test_a_face_is_cut_out_of_a_frame_as_the_client_does_it(port):
    picture = encode_png(astronaut())
    answer, data = post(port, accept=NPZ_TYPE, frame=picture)
    assert answer.status == 200
    arrays = np.load(io.BytesIO(data))
    face = Face(arrays["box_xyxy"], 1.0)
    spec = tiny_explainer().spec
    np.testing.assert_array_equal(arrays["crop"], crop_face(ArrayFrame.from_rgb(astronaut()), face, spec))
    found = explanation_from_npz(data)
    assert sum(found.part_shares.values()) == pytest.approx(1, abs=1e-2)
    box = ",".join(str(value) for value in arrays["box_xyxy"])
    _, again = post(port, {"box": box}, accept=NPZ_TYPE, frame=picture)
    np.testing.assert_array_equal(explanation_from_npz(again).heatmap, found.heatmap)
    assert explanation_from_npz(again).part_shares == found.part_shares


NO_FACE = encode_png(np.full((200, 300, 3), 90, np.uint8))
CROP = encode_png(CROPS[0])
REFUSED = {
    "no face": ({}, {"frame": NO_FACE}, 422, r"no face was found in the 300x200 px frame; send"),
    "wrong size": ({}, {"crop": NO_FACE}, 422, r"the crop is 300x200 px, but the model takes 48x48 px; send"),
    "unknown layer": ({"layer": "bn2"}, {"crop": CROP}, 422, r"layer is 'bn2'; allowed: 4, 3, 2, 1, 0$"),
    "unknown method": ({"method": "cam"}, {"crop": CROP}, 422, r"method is 'cam'; allowed: grad-cam, "),
    "not an image": ({}, {"crop": b"%PDF-1.7 nothing to see"}, 415, r"no JPEG, PNG or WebP image \(it begins with"),
    "empty": ({}, {"crop": b""}, 415, "it is empty"),
    "damaged": ({}, {"crop": CROP[:300]}, 415, "damaged or cut short"),
    "no picture": ({"method": "grad-cam"}, {}, 422, "got none"),
    "two pictures": ({}, {"crop": CROP, "frame": CROP}, 422, "got crop and frame"),
    "box of a crop": ({"box": "1,2,3,4"}, {"crop": CROP}, 422, "send a 'frame' with it"),
    "box outside": ({"box": "500,2,900,4"}, {"frame": NO_FACE}, 422, r"box is 500,2,900,4; allowed: .* 300x200 px"),
    "box of words": ({"box": "a,b"}, {"frame": NO_FACE}, 422, "box is 'a,b'; allowed: left,top,right,bottom"),
    "landmarks": ({"landmarks": "1,2"}, {"crop": CROP}, 422, "landmarks is '1,2'; allowed: .* ten numbers"),
    "flag": ({"sanity": "maybe"}, {"crop": CROP}, 422, "sanity is 'maybe'; allowed: true, false"),
    "unknown field": ({"colour": "red"}, {"crop": CROP}, 422, "a field 'colour'; allowed: the pictures crop, frame"),
    "many pixels": ({}, {"crop": encode_png(np.zeros((1025, 1024, 3), np.uint8))}, 413, "has 1024x1025 pixels"),
    "served nonsense": ({"served_probability": "x"}, {"crop": CROP}, 422, "served_probability is 'x'"),
    "served elsewhere": (
        {"served_probability": "0.5", "served_checkpoint_sha256": OTHER_SHA}, {"crop": CROP}, 409, "is loaded here",
    ),
    "served otherwise": (
        {"served_probability": "0.0001", "served_checkpoint_sha256": SHA}, {"crop": CROP}, 409,
        r"PyTorch gives 0\.\d{6} for crop 0, but the server gave 0\.000100",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_explained_is_refused_in_one_sentence(port, name):
    fields, files, status, sentence = REFUSED[name]
    answer, data = post(port, fields, **files)
    assert answer.status == status
    assert re.search(sentence, problem_of(answer, data))


def test_other_requests_are_refused_in_one_sentence(port):
    answer, data = ask(port, body=b"{}", content_type="application/json")
    assert answer.status == 415
    assert "the request is application/json; send multipart/form-data" in problem_of(answer, data)
    answer, data = ask(port, body=b"nonsense", content_type="multipart/form-data; boundary=edge")
    assert answer.status == 400
    assert "the form is damaged" in problem_of(answer, data)
    answer, data = post(port, accept="text/html", crop=CROP)
    assert answer.status == 406
    assert "an explanation can be application/json, image/png, application/x-npz" in problem_of(answer, data)
    for method, path, status in (("GET", "/v1/explain", 405), ("GET", "/nothing", 404)):
        answer, data = ask(port, method, path)
        assert answer.status == status
        assert "POST /v1/explain" in problem_of(answer, data)


def test_an_upload_of_50_mb_is_answered_in_one_sentence(port):
    answer, data = post(port, crop=bytes(50 * 2**20))
    assert answer.status == 413
    assert "at most 1048576 are accepted" in problem_of(answer, data)


def test_an_upload_without_a_length_is_refused_as_soon_as_it_is_too_large():
    """Spoken to without a socket, so that what was asked for can be counted."""
    sent, received = [], 0
    head = b'--edge\r\nContent-Disposition: form-data; name="crop"; filename="x"\r\n\r\n'

    async def receive():
        nonlocal received
        if sent:
            return {"type": "http.disconnect"}
        chunk = head if not received else bytes(2**16)
        received += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/explain", "raw_path": b"/v1/explain", "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=edge")], "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(build_app(tiny_explainer(), MtcnnDetector(), limits=LIMITS)(scope, receive, send))
    assert sent[0]["status"] == 413
    assert received <= LIMITS.max_upload_bytes + 2**16


class Held:
    """An explainer that waits for a sign, and says when it has begun."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self._explainer = tiny_explainer()

    def __getattr__(self, name):
        return getattr(self._explainer, name)

    def explain(self, *args, **kwargs):
        self.begun.set()
        assert self.go.wait(30)
        return self._explainer.explain(*args, **kwargs)


def test_more_than_it_takes_is_refused_and_what_waits_together_is_one_batch():
    held = Held()
    with running(held, limits=Limits(max_requests=5)) as port, ThreadPoolExecutor(5) as pool:
        first = pool.submit(post, port, crop=CROP)
        assert held.begun.wait(30)
        others = [pool.submit(post, port, crop=encode_png(crop)) for crop in CROPS[1:5]]
        while json.loads(ask(port, "GET", "/health")[1])["requests_in_flight"] < 5:
            pass
        answer, data = post(port, crop=CROP)
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert "busy with 5 requests" in problem_of(answer, data)
        with pytest.raises(ServerBusyError, match="busy"):
            ServiceExplainer(f"http://127.0.0.1:{port}").explain(CROPS[:1], ExplainOptions())
        assert ask(port, "GET", "/health")[0].status == 503
        assert ask(port, "GET", "/health/live")[0].status == 200
        held.go.set()
        assert {future.result()[0].status for future in (first, *others)} == {200}
        _, metrics = ask(port, "GET", "/metrics")
        counts = dict(re.findall(r"^(deepfake_explain_\S+) (\S+)$", metrics.decode(), re.MULTILINE))
        assert float(counts['deepfake_explain_requests_total{status="200"}']) == 5
        assert float(counts['deepfake_explain_requests_total{status="503"}']) == 2
        # Requests that came while the first was computed went through the network together, up to those whose
        # pictures were still being decoded.
        assert float(counts["deepfake_explain_batch_size_count"]) < 5
        assert float(counts["deepfake_explain_batch_size_sum"]) == 5
        assert ask(port, "GET", "/health")[0].status == 200


def test_a_request_that_takes_too_long_is_given_up():
    held = Held()
    with running(held, limits=Limits(timeout_s=0.3)) as port:
        answer, data = post(port, crop=CROP)
        assert answer.status == 504
        assert "no explanation within 0.3 s" in problem_of(answer, data)
        # An upload that never ends.
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(
                b"POST /v1/explain HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
                b"Content-Length: 1000\r\n\r\n--edge"
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        with pytest.raises(ServerTimeoutError):
            ServiceExplainer(f"http://127.0.0.1:{port}").explain(CROPS[:1], ExplainOptions())
        held.go.set()
        assert post(port, crop=CROP)[0].status in (200, 504)


def test_an_error_of_one_batch_is_told_to_those_who_waited_and_the_next_goes_on(monkeypatch):
    explainer = tiny_explainer()
    real, failures = explainer.explain, [OptionError("no luck"), None]

    def explain(*args, **kwargs):
        failure = failures.pop(0)
        if failure is not None:
            raise failure
        return real(*args, **kwargs)

    monkeypatch.setattr(explainer, "explain", explain)
    with running(explainer) as port:
        answer, data = post(port, crop=CROP)
        assert problem_of(answer, data) == "no luck"
        assert post(port, crop=CROP)[0].status == 200


def test_every_score_is_compared_with_that_of_the_server(monkeypatch):
    explainer = tiny_explainer()
    answers = {"scorer": explainer.score, "error": None}

    def client(connection, *, model, detector):
        assert (connection.url, connection.retry, model) == ("triton:8001", NO_RETRY, "tiny")
        transport = FakeTransport(
            lambda faces: answers["scorer"](faces), spec=explainer.spec, error=answers["error"], fail_after=0
        )
        return AsyncDeepfakeClient(transport, detector=detector)

    monkeypatch.setattr(service_module, "AsyncDeepfakeClient", client)
    with running(explainer, agreement=Agreement("triton:8001", "tiny")) as port:
        answer, data = post(port, crop=CROP)
        assert answer.status == 200
        facts = json.loads(data)
        assert facts["served_probability"] == pytest.approx(facts["fake_probability"], abs=1e-6)
        answers["scorer"] = lambda faces: explainer.score(faces) + 0.01
        answer, data = post(port, crop=CROP)
        assert answer.status == 409
        assert "but the server gave" in problem_of(answer, data)
    answers["error"] = ServerUnavailableError("no inference server answers at triton:8001")
    with running(explainer, agreement=Agreement("triton:8001", "tiny")) as port:
        answer, data = post(port, crop=CROP)
        assert answer.status == 502
        assert "no inference server answers" in problem_of(answer, data)


def test_the_client_gets_what_the_library_gives(port):
    explainer, remote = tiny_explainer(), ServiceExplainer(f"127.0.0.1:{port}")
    landmarks = np.array([[18, 20], [30, 20], [24, 27], [19, 33], [29, 33]], np.float32)
    served = ServedScores(explainer.score(CROPS), SHA)
    options = ExplainOptions("layer-cam", "2", faithfulness=True)
    here = explainer.explain(CROPS, options, landmarks_xy=[landmarks] * len(CROPS), served=served)
    there = remote.explain(CROPS, options, landmarks_xy=[landmarks] * len(CROPS), served=served)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other.heatmap, one.heatmap, atol=1e-4)
        assert other.part_shares.keys() == one.part_shares.keys()
        assert len(other.regions) == len(one.regions)
        assert other.served_probability == one.served_probability
        assert other.layer == "2"
        assert other.checks["faithfulness"]["deletion_auc"] == pytest.approx(
            one.checks["faithfulness"]["deletion_auc"], abs=1e-3
        )
    with pytest.raises(ExplainDisagreementError, match="is loaded here"):
        remote.explain(CROPS[:1], options, served=ServedScores(served.probabilities[:1], OTHER_SHA))
    with pytest.raises(OptionError, match="layer is 'x'; allowed: 4, 3"):
        remote.explain(CROPS[:1], ExplainOptions(layer="x"))
    remote.close()


def test_a_service_that_is_down_or_another_one_is_answered_in_one_sentence(port):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = ServiceExplainer(f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ServerUnavailableError, match=r"no explain service answers at .*explain-serve CHECKPOINT"):
            down.explain(CROPS[:1], ExplainOptions())
    with pytest.raises(OptionError, match="the explain service is 'ftp://x'; allowed: a URL"):
        ServiceExplainer("ftp://x")
    with pytest.raises(InferenceError, match="something else than an explanation"):
        explanation_from_npz(b"PK")
    with pytest.raises(OptionError, match="Nothing matches the given URI"):
        ServiceExplainer(f"http://127.0.0.1:{port}/elsewhere").explain(CROPS[:1], ExplainOptions())


def test_an_explanation_survives_the_wire():
    (found,) = tiny_explainer().explain(CROPS[:1], ExplainOptions(sanity=True))
    back = explanation_from_npz(explanation_to_npz(found))
    np.testing.assert_array_equal(back.heatmap, found.heatmap)
    np.testing.assert_array_equal(back.overlay, found.overlay)
    assert back.to_dict() == found.to_dict()


def test_the_service_says_what_it_explains(port):
    _, data = ask(port, "GET", "/v1/model")
    facts = json.loads(data)
    assert facts["spec"]["checkpoint_sha256"] == SHA
    assert facts["layers"] == ["0", "1", "2", "3", "4"]
    assert facts["default_layer"] == "4"


def test_limits_are_checked():
    with pytest.raises(OptionError, match="max_requests is 0; allowed: a number above 0"):
        Limits(max_requests=0)
