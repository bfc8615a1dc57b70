"""The explain service on a real socket: its answers, its limits, and one sentence for everything it refuses."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
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
from explain_nets import OTHER_SHA, SHA, SIDE_PX, spec_of, tiny_explainer, tiny_network
from media import astronaut

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.explain.encoding import encode_png
from deepfake_client.explain.service import ServiceExplainer
from deepfake_client.explain.types import METHODS, ExplainOptions, MemberHeatmap, Region, ServedScores
from deepfake_client.explain.wire import ExplainAnswer
from deepfake_client.transport.testing import FakeTransport
from deepfake_explain import CheckpointExplainer
from deepfake_explain.service.admission import RequestLimits
from deepfake_explain.service.app import build_app
from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.errors import (
    ExplainDisagreementError,
    InferenceError,
    OptionError,
    ServerBusyError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import faces_in
from deepfake_preprocess.faces.geometry import crop_geometry
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.frame import ArrayFrame

CROPS = generate_crops(6, (SIDE_PX, SIDE_PX), seed=5)
LANDMARKS = np.array([[18, 20], [30, 20], [24, 27], [19, 33], [29, 33]], np.float32)
LANDMARKS_TEXT = ",".join(map(str, LANDMARKS.ravel()))
LIMITS = RequestLimits(max_upload_bytes=2**20, max_pixels=2**20)


@contextmanager
def running(explainer=None, when_it_stops=lambda: None, **options):
    """Yield the port of a service on a free one, with its uvicorn in a thread.

    ``when_it_stops`` is called as uvicorn begins to shut down, before it waits for the requests under way.
    """
    app = build_app(explainer or tiny_explainer(), MtcnnDetector(), **{"limits": LIMITS, **options})
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    shut_down = server.shutdown

    async def shutdown(sockets=None):
        when_it_stops()
        await shut_down(sockets)

    server.shutdown = shutdown
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


def ask(port, method="POST", path="/v1/explain", body=b"", content_type=""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def post(port, fields=None, **files):
    body, content_type = form(fields, **files)
    return ask(port, body=body, content_type=content_type)


def problem_of(answer, data):
    """Return the sentence of a problem+json."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = json.loads(data)
    assert found["status"] == answer.status
    assert found["title"]
    assert "\n" not in found["detail"]
    assert "Traceback" not in found["detail"]
    return found["detail"]


def assert_same(one, other):
    """Two explanations are equal to the bit."""
    np.testing.assert_array_equal(one.heatmap, other.heatmap)
    np.testing.assert_array_equal(one.overlay, other.overlay)
    assert one.heatmap.dtype == other.heatmap.dtype == np.float32
    for name in ("fake_probability", "served_probability", "tolerance", "method", "layer", "checkpoint_sha256"):
        assert getattr(one, name) == getattr(other, name)
    assert one.regions == other.regions
    assert one.part_shares == other.part_shares
    assert json.dumps(dict(one.checks)) == json.dumps(dict(other.checks))


def test_a_crop_is_answered_with_what_the_library_gives(port):
    (expected,) = tiny_explainer().explain(CROPS[:1], ExplainOptions("hires-cam"))
    answer, data = post(port, {"method": "hires-cam", "landmarks": LANDMARKS_TEXT}, crop=encode_png(CROPS[0]))
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(data)["crop_to_frame"] is None
    facts = json.loads(data)["explanation"]
    assert facts["fake_probability"] == expected.fake_probability
    assert (facts["method"], facts["layer"], facts["checkpoint_sha256"]) == ("hires-cam", "4", SHA)
    # As it is read without our client.
    png = np.frombuffer(base64.b64decode(facts["overlay"]), np.uint8)
    picture = cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(picture, expected.overlay)
    heatmap = np.load(io.BytesIO(base64.b64decode(facts["heatmap"])))
    np.testing.assert_array_equal(heatmap, expected.heatmap)


def test_a_face_is_cut_out_of_a_frame_as_the_client_does_it(port):
    frame, explainer = ArrayFrame.from_rgb(astronaut()), tiny_explainer()
    (face,) = faces_in(frame, MtcnnDetector())
    crop = crop_face(frame, face, explainer.spec)
    geometry = crop_geometry(face, (frame.width_px, frame.height_px), explainer.spec)
    points = geometry.points_to_crop(face.landmarks_xy).astype(np.float32)
    (expected,) = explainer.explain(crop[None], ExplainOptions("layer-cam"), landmarks_xy=[points])
    assert expected.part_shares
    box = {"method": "layer-cam", "box": ",".join(map(str, face.box_xyxy.tolist()))}
    # Landmarks are found where the box is.
    for fields in (box, {**box, "landmarks": ",".join(map(str, face.landmarks_xy.ravel().tolist()))}):
        answer, data = post(port, fields, frame=encode_png(astronaut()))
        assert answer.status == 200
        found = ExplainAnswer.model_validate_json(data)
        assert_same(found.explanation, expected)
        np.testing.assert_allclose(found.crop_to_frame, geometry.to_frame)
    _, data = post(port, {**box, "box": "0,0,40,40"}, frame=encode_png(astronaut()))
    assert not ExplainAnswer.model_validate_json(data).explanation.part_shares


def test_landmarks_of_a_crop_are_found_where_its_margin_leaves_the_face():
    explainer = CheckpointExplainer(tiny_network(), spec_of(input_height_px=160, input_width_px=160))
    frame = ArrayFrame.from_rgb(astronaut())
    (face,) = faces_in(frame, MtcnnDetector())
    with running(explainer) as port:
        _, data = post(port, {"method": "layer-cam"}, crop=encode_png(crop_face(frame, face, explainer.spec)))
    assert ExplainAnswer.model_validate_json(data).explanation.part_shares


NO_FACE = encode_png(np.full((200, 300, 3), 90, np.uint8))
LARGE = encode_png(np.zeros((1025, 1024, 3), np.uint8))
CROP = encode_png(CROPS[0])
REFUSED = {
    "wrong size": ({}, {"crop": NO_FACE}, 422, r"crops must be uint8 \[N, 48, 48, 3\] RGB, got"),
    "unknown layer": ({"layer": "bn2"}, {"crop": CROP}, 422, r"`layer` is 'bn2'; allowed: 4, 3, 2, 1, 0$"),
    "unknown method": ({"method": "cam"}, {"crop": CROP}, 422, r"`method` is 'cam'; allowed: grad-cam, "),
    "not an image": ({}, {"crop": b"%PDF-1.7 nothing to see"}, 415, r"a JPEG, PNG or WebP image \(it begins with"),
    "empty": ({}, {"crop": b""}, 415, "it is empty"),
    "damaged": ({}, {"crop": CROP[:300]}, 415, "damaged or cut short"),
    "no picture": ({"method": "grad-cam"}, {}, 422, "^the form must hold one picture: a 'crop', or a 'frame' with"),
    "two pictures": ({}, {"crop": CROP, "frame": CROP}, 422, "must hold one picture"),
    "a text": ({"crop": "text"}, {}, 422, "`crop` is 'text': Expected UploadFile"),
    "box of a crop": ({"box": "1,2,3,4"}, {"crop": CROP}, 422, "must hold one picture"),
    "no box": ({}, {"frame": NO_FACE}, 422, "must hold one picture"),
    "empty box": ({"box": "9,2,9,4"}, {"frame": NO_FACE}, 422, r"`box` is \[9.0, 2.0, 9.0, 4.0\]; allowed: left,top"),
    "box far away": ({"box": "1,2,3,1e38"}, {"frame": NO_FACE}, 422, "`box.3` is '1e38': .* less than or equal"),
    "box of words": ({"box": "1,2,3,x"}, {"frame": NO_FACE}, 422, "`box.3` is 'x': .* valid number"),
    "box of nan": ({"box": "1,2,3,nan"}, {"frame": NO_FACE}, 422, "`box.3` is 'nan': "),
    "landmarks": ({"landmarks": "1,2"}, {"crop": CROP}, 422, "`landmarks` is .*1,2.*: .* at least 10 items"),
    "flag": ({"sanity": "maybe"}, {"crop": CROP}, 422, "`sanity` is 'maybe': .* valid boolean"),
    "unknown field": ({"color": "red"}, {"crop": CROP}, 422, "`color` is 'red': Extra inputs are not permitted"),
    "many pixels": ({}, {"crop": LARGE}, 415, "has 1024x1025 pixels; at most .* 1048576 in total"),
    "served nonsense": ({"served_probability": "x"}, {"crop": CROP}, 422, "`served_probability` is 'x': "),
    "served too much": ({"served_probability": "1.5"}, {"crop": CROP}, 422, "less than or equal to 1"),
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
    problem_of(answer, data)
    for method, path, status in (("GET", "/v1/explain", 405), ("GET", "/nothing", 404), ("GET", "/docs", 404)):
        answer, data = ask(port, method, path)
        assert answer.status == status
        problem_of(answer, data)


def test_openapi_describes_the_form_the_answer_and_the_problems(port):
    answer, data = ask(port, "GET", "/openapi.json")
    assert answer.status == 200
    described = json.loads(data)
    assert {"/v1/explain", "/v1/model", "/health", "/health/live", "/metrics"} <= set(described["paths"])
    operation = described["paths"]["/v1/explain"]["post"]
    assert set(operation["responses"]) == {
        "200", "400", "409", "413", "415", "422", "502", "503", "504",
    }  # fmt: skip
    assert all(
        "application/problem+json" in item["content"]
        for code, item in operation["responses"].items()
        if code != "200"
    )
    (reference,) = operation["requestBody"]["content"]["multipart/form-data"]["schema"].values()
    form = described["components"]["schemas"][reference.rpartition("/")[2]]
    assert form["additionalProperties"] is False
    assert {"crop", "frame", "box", "method", "served_probability"} <= set(form["properties"])
    assert form["properties"]["method"]["enum"] == list(METHODS)
    heatmap = described["components"]["schemas"]["Explanation"]["properties"]["heatmap"]
    assert (heatmap["contentEncoding"], heatmap["contentMediaType"]) == ("base64", "application/x-npy")


def test_an_upload_of_50_mb_is_answered_in_one_sentence(port):
    answer, data = post(port, crop=bytes(50 * 2**20))
    assert answer.status == 413
    assert "more than 1048576 bytes" in problem_of(answer, data)


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


def test_more_than_it_takes_is_refused_and_what_was_let_in_is_answered():
    held = Held()
    with running(held, limits=RequestLimits(max_requests=5)) as port, ThreadPoolExecutor(5) as pool:
        first = pool.submit(post, port, crop=CROP)
        assert held.begun.wait(30)
        others = [pool.submit(post, port, crop=encode_png(crop)) for crop in CROPS[1:5]]
        while json.loads(ask(port, "GET", "/health")[1])["ready"]:
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
        assert float(counts["deepfake_explain_seconds_count"]) == 5
        assert float(counts["deepfake_explain_requests_in_flight"]) == 0
        assert ask(port, "GET", "/health")[0].status == 200


def test_a_request_that_takes_too_long_is_given_up():
    held = Held()
    with running(held, limits=RequestLimits(timeout_s=0.3)) as port:
        answer, data = post(port, crop=CROP)
        assert answer.status == 504
        assert "no explanation within 0.3 s" in problem_of(answer, data)
        # An upload that never ends.
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(
                b"POST /v1/explain HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
                b"Content-Length: 1000\r\n\r\n--edge"
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 504")
        with pytest.raises(ServerTimeoutError):
            ServiceExplainer(f"http://127.0.0.1:{port}").explain(CROPS[:1], ExplainOptions())
        held.go.set()
        assert post(port, crop=CROP)[0].status in (200, 504)


def test_a_request_under_way_is_answered_when_the_service_stops():
    held = Held()
    with ThreadPoolExecutor(1) as pool:
        with running(held, when_it_stops=held.go.set) as port:
            answer = pool.submit(post, port, crop=CROP)
            assert held.begun.wait(30)
        assert answer.result()[0].status == 200


def test_after_an_error_the_next_request_is_explained(monkeypatch):
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


def test_every_score_is_compared_with_that_of_the_server():
    explainer = tiny_explainer()
    transport = {"scorer": explainer.score, "precision": "fp32", "error": None}

    def connect():
        return AsyncDeepfakeClient(
            FakeTransport(
                transport["scorer"],
                spec=explainer.spec,
                precision=transport["precision"],
                error=transport["error"],
                fail_after=0,
            )
        )

    def off_by(difference):
        return lambda faces: explainer.score(faces) + np.float32(difference)

    def ask_service(**changes):
        transport.update(changes)
        with running(explainer, connect=connect) as port:
            answer, data = post(port, crop=CROP)
        return answer, data

    answer, data = ask_service()
    assert answer.status == 200
    facts = json.loads(data)["explanation"]
    assert facts["served_probability"] == pytest.approx(facts["fake_probability"], abs=1e-6)
    answer, data = ask_service(scorer=off_by(0.01))
    assert answer.status == 409
    assert "but the server gave" in problem_of(answer, data)
    # What the served model computes in decides how far scores may be apart.
    answer, data = ask_service(precision="fp16")
    assert answer.status == 200
    assert json.loads(data)["explanation"]["tolerance"] == TOLERANCES["fp16"].probability_abs
    answer, data = ask_service(error=ServerUnavailableError("no inference server answers at triton:8001"))
    assert answer.status == 502
    assert "no inference server answers" in problem_of(answer, data)


def test_a_server_that_comes_back_is_asked_again():
    explainer = tiny_explainer()
    error = ServerUnavailableError("no inference server answers at triton:8001")
    transports = [
        FakeTransport(explainer.score, spec=explainer.spec, error=error, fail_after=0),
        *(FakeTransport(explainer.score, spec=explainer.spec) for _ in range(2)),
    ]
    waiting = iter(transports)
    with running(explainer, connect=lambda: AsyncDeepfakeClient(next(waiting))) as port:
        assert [post(port, crop=CROP)[0].status for _ in range(3)] == [502, 200, 200]
    assert all(transport.closed for transport in transports)


@pytest.mark.parametrize(
    "options", [ExplainOptions("layer-cam", "2", faithfulness=True), ExplainOptions(sanity=True)]
)
def test_the_client_gets_what_the_library_gives(port, options):
    explainer, remote = tiny_explainer(), ServiceExplainer(f"127.0.0.1:{port}")
    served = ServedScores(explainer.score(CROPS), SHA)
    given = {"landmarks_xy": [LANDMARKS] * len(CROPS), "served": served}
    there = remote.explain(CROPS, options, **given)
    assert len(there) == len(CROPS)
    for index, other in enumerate(there):
        one = {
            "landmarks_xy": [LANDMARKS],
            "served": ServedScores(served.probabilities[index : index + 1], SHA),
        }
        assert_same(other, *explainer.explain(CROPS[index : index + 1], options, **one))
    with pytest.raises(ExplainDisagreementError, match="is loaded here"):
        remote.explain(CROPS[:1], options, served=ServedScores(served.probabilities[:1], OTHER_SHA))
    with pytest.raises(OptionError, match="`layer` is 'x'; allowed: 4, 3"):
        remote.explain(CROPS[:1], ExplainOptions(layer="x"))
    assert remote.explain(CROPS[:0], options) == []
    remote.close()


def test_the_client_can_be_used_where_an_event_loop_runs(port):
    async def explain():
        return ServiceExplainer(f"127.0.0.1:{port}").explain(CROPS[:1], ExplainOptions())

    assert len(asyncio.run(explain())) == 1


def test_a_service_that_is_down_or_another_one_is_answered_in_one_sentence(port):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = ServiceExplainer(f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ServerUnavailableError, match=r"no explain service answers at .*explain-serve CHECKPOINT"):
            down.explain(CROPS[:1], ExplainOptions())
    with pytest.raises(OptionError, match="the explain service is 'ftp://x'; allowed: a URL"):
        ServiceExplainer("ftp://x")
    assert ServiceExplainer("host:8090/v1/").url == "http://host:8090"
    elsewhere = ServiceExplainer(f"http://127.0.0.1:{port}/elsewhere")
    with pytest.raises(OptionError, match=r"the explain service at http://127\.0\.0\.1:\d+/elsewhere: Not Found"):
        elsewhere.explain(CROPS[:1], ExplainOptions())


def test_an_answer_that_is_not_an_explanation_is_a_sentence(monkeypatch):
    explainer = tiny_explainer()
    with running(explainer) as port:
        monkeypatch.setattr(explainer, "explain", lambda *_, **__: [None])
        with pytest.raises(InferenceError, match=r"status 500 .* is it an explain service of this version\?"):
            ServiceExplainer(f"http://127.0.0.1:{port}").explain(CROPS[:1], ExplainOptions())


def test_an_explanation_with_members_survives_the_wire():
    (found,) = tiny_explainer().explain(CROPS[:1], ExplainOptions(sanity=True))
    heat = np.random.default_rng(0).random((3, 5), np.float32)
    member = MemberHeatmap("eyes", heat, "pixels", "bn2", 0.25, 0.123456789)
    found = dataclasses.replace(found, members=(member,), regions=(Region((1, 2, 3, 4), 0.123456789, None),))
    back = ExplainAnswer.model_validate_json(ExplainAnswer(explanation=found).model_dump_json()).explanation
    assert_same(back, found)
    np.testing.assert_array_equal(back.members[0].heatmap, heat)
    assert (back.members[0].weight, back.members[0].name) == (member.weight, "eyes")


def test_the_service_says_what_it_explains(port):
    _, data = ask(port, "GET", "/v1/model")
    facts = json.loads(data)
    assert facts["spec"]["checkpoint_sha256"] == SHA
    assert facts["layers"] == ["0", "1", "2", "3", "4"]
    assert facts["default_layer"] == "4"
