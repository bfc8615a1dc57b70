"""The routes of other projects: exactly their fields, and null with a reason where there is no verdict."""

import numpy as np
from media import write_video


def test_predictions_have_the_fields_that_people_know(gateway, clip):
    answer = gateway.post("/predict/video", files={"file": ("clip.mp4", clip)}).json()
    assert list(answer) == ["file_type", "frames_processed", "confidence", "label"]
    assert (answer["file_type"], answer["label"]) == ("video", "FAKE")


def test_analyze_video_has_the_fields_that_people_know(gateway, clip):
    data = {"num_frames": "8", "enable_gradcam": "true"}
    answer = gateway.post("/api/v1/analyze-video", files={"video_file": ("clip.mp4", clip)}, data=data).json()
    assert list(answer) == [
        "video_id", "overall_prediction", "confidence_score", "frame_predictions", "processing_time", "model_version",
    ]  # fmt: skip
    assert len(answer["frame_predictions"]) == 8
    assert list(answer["frame_predictions"][0]) == ["frame_number", "timestamp", "prediction", "confidence"]


def test_no_verdict_is_null_with_a_reason(gateway, tmp_path):
    path = tmp_path / "one.mp4"
    write_video(path, [np.zeros((2, 2, 3), np.uint8)], codec="mpeg4")
    answer = gateway.post("/predict/video", files={"file": ("one.mp4", path.read_bytes())}).json()
    assert (answer["confidence"], answer["label"]) == (None, None)
    assert answer["reason"]


def test_health(gateway):
    assert gateway.get("/health").json() == {"status": "ok"}
    assert gateway.get("/api/v1/health").status_code == 200
