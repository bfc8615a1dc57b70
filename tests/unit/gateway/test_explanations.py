"""Pictures of the faces behind a verdict, and heatmaps that explain their scores."""

import cv2
import gateways
import numpy as np
import pytest

from deepfake_gateway.api.documents import CropsDocument, ExplanationDocument

WAIT = {"Prefer": "wait=60"}


@pytest.fixture
def gateway(tmp_path):
    with gateways.gateway(tmp_path / "data", explain_url="http://127.0.0.1:9") as client:
        yield client


@pytest.fixture
def analysis(gateway, clip):
    files = {"file": ("clip.mp4", clip)}
    return gateway.post("/v1/analyses", files=files, data={"num_frames": 3}, headers=WAIT).json()


def picture_of(answer):
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    return cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)


def test_crops_are_what_the_model_saw_and_are_made_once(gateway, analysis):
    listed = gateway.get(analysis["links"]["crops"]).json()
    CropsDocument.model_validate(listed)
    faces = [face["fake_probability"] for frame in analysis["verdict"]["frames"] for face in frame["faces"]]
    assert [crop["fake_probability"] for crop in listed["items"]] == sorted(faces, reverse=True)
    shapes = {picture_of(gateway.get(crop["href"])).shape for crop in listed["items"]}
    assert shapes == {(gateways.SPEC.input_height_px, gateways.SPEC.input_width_px, 3)}
    assert gateway.sandboxes.tasks == ["crops"]
    assert gateway.get(f"{analysis['links']['crops']}/7-7.png").status_code == 404


def test_an_explanation_has_heatmaps_and_says_how_far_they_agree(gateway, analysis):
    answer = gateway.post(analysis["links"]["explanations"], headers=WAIT)
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["location"] == body["links"]["self"]
    ExplanationDocument.model_validate(body)
    assert [face["difference"] <= face["tolerance"] for face in body["faces"]] == [True] * 3
    for face in body["faces"]:
        assert np.array_equal(picture_of(gateway.get(face["heatmap"])), picture_of(gateway.get(face["href"])))
    assert gateway.get(body["links"]["self"]).json() == body
    assert gateway.get(analysis["links"]["explanations"]).json()["items"] == [body]

    again = gateway.post(analysis["links"]["explanations"], json={})
    assert again.json()["id"] == body["id"]
    one = {"method": "hires-cam", "crops": [body["faces"][1]["name"]]}
    other = gateway.post(analysis["links"]["explanations"], json=one, headers=WAIT).json()
    assert [face["method"] for face in other["faces"]] == ["hires-cam"]


def test_the_page_keeps_the_heatmaps_that_a_request_for_one_face_leaves_out(gateway, analysis):
    links = analysis["links"]
    first = gateway.post(links["explanations"], headers=WAIT).json()
    one = {"crops": [first["faces"][1]["name"]]}
    second = gateway.post(links["explanations"], json=one, headers=WAIT).json()
    page = gateway.get(f"/analyses/{analysis['id']}/moments").text
    for face in first["faces"]:
        newest = second["faces"][0] if face["name"] in one["crops"] else face
        assert newest["heatmap"] in page
    assert page.count("nothing red: no part raised this score") == 3
    assert "they differ by at most 0.00001 " in page
    gateway.post(links["explanations"], json={**one, "method": "hires-cam"}, headers=WAIT)
    page = gateway.get(f"/analyses/{analysis['id']}/moments").text
    assert (page.count('class="heat"'), "Method: hires-cam" in page) == (1, True)


def test_an_explain_service_that_starts_meanwhile_is_waited_for(gateway, analysis):
    gateway.queue.num_away = 2
    body = gateway.post(analysis["links"]["explanations"], headers=WAIT).json()
    assert (body["status"], len(body["faces"]), gateway.queue.num_away) == ("done", 3, 0)


def test_a_disagreement_is_no_explanation_and_is_asked_for_again(gateway, analysis):
    gateway.queue.disagrees = True
    failed = gateway.post(analysis["links"]["explanations"], headers=WAIT).json()
    assert (failed["status"], failed["error"]["type"]) == ("failed", "ExplainDisagreementError")
    gateway.queue.disagrees = False
    assert gateway.post(analysis["links"]["explanations"], headers=WAIT).json()["status"] == "done"


def test_refusals_say_what_there_is(gateway, analysis, tmp_path, clip):
    wrong = gateway.post(analysis["links"]["explanations"], json={"crops": ["9-9"]})
    assert (wrong.status_code, "0-" in wrong.json()["detail"]) == (422, True)
    assert gateway.post(analysis["links"]["explanations"], json={"method": "x"}).status_code == 422
    assert gateway.get("/v1/explainer").json()["reason"] == "the explain service gives no answer"


def test_where_the_medium_was_removed_what_is_made_of_it_is_refused_at_once(gateway, analysis):
    links = analysis["links"]
    crop = gateway.get(links["crops"]).json()["items"][0]["href"]
    done = gateway.post(links["explanations"], headers=WAIT).json()
    gateway.desk.media.delete(analysis["id"])
    answers = [gateway.get(address) for address in (links["media"], links["report"], links["crops"], crop)]
    answers.append(gateway.post(links["explanations"], headers=WAIT))
    for answer in answers:
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert answer.json()["detail"] == "the medium of this analysis was removed; send the file again"
    assert gateway.get(links["explanations"]).json()["items"] == [done]
    assert gateway.get(links["report"], params={"format": "json"}).json() == analysis["verdict"]


def test_an_explanation_whose_medium_is_removed_meanwhile_fails(gateway, analysis):
    gateway.queue.hold.clear()
    queued = gateway.post(analysis["links"]["explanations"]).json()
    gateway.desk.media.delete(analysis["id"])
    gateway.queue.close()
    failed = gateway.get(queued["links"]["self"]).json()
    assert (failed["status"], "removed" in failed["error"]["message"]) == ("failed", True)


def test_without_a_service_there_are_crops_and_no_heatmaps(tmp_path, clip):
    with gateways.gateway(tmp_path / "other") as gateway:
        analysis = gateway.post("/v1/analyses", files={"file": ("clip.mp4", clip)}, headers=WAIT).json()
        answer = gateway.post(analysis["links"]["explanations"])
        assert (answer.status_code, "explain_url" in answer.json()["detail"]) == (503, True)
        assert not gateway.get("/v1/explainer").json()["available"]
