"""The face detector finds the faces that are there, wherever, in whatever company and on whatever thread."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from checkout import ROOT
from skimage.data import astronaut

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.faces.boxes import iou
from deepfake_preprocess.faces.detector import Face, FaceDetector
from deepfake_preprocess.faces.mtcnn import MtcnnDetector

# Where the face is in skimage's 512x512 picture, read off by eye to within some pixels.
FACE_XYXY = np.array([177, 63, 271, 187])


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    return MtcnnDetector()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(astronaut())


def placed(photo: np.ndarray, size_wh: tuple[int, int], places: list[tuple[int, int, float]]) -> np.ndarray:
    """Put scaled head-and-shoulder crops on a gray picture; each place is x, y and scale."""
    head = photo[0:260, 90:350]
    picture = np.full((size_wh[1], size_wh[0], 3), 128, dtype=np.uint8)
    for x, y, scale in places:
        scaled = cv2.resize(head, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        picture[y : y + scaled.shape[0], x : x + scaled.shape[1]] = scaled
    return picture


def face_at(x: int, y: int, scale: float) -> np.ndarray:
    return (FACE_XYXY - np.array([90, 0, 90, 0])) * scale + np.array([x, y, x, y])


def assert_same(first: list[Face], second: list[Face]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        # The number of crops in a batch may change the order of additions in the last bit.
        np.testing.assert_allclose(a.box_xyxy, b.box_xyxy, atol=1e-2)
        np.testing.assert_allclose(a.landmarks_xy, b.landmarks_xy, atol=1e-2)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


def test_is_a_face_detector(detector):
    assert isinstance(detector, FaceDetector)


def test_finds_the_face_and_its_landmarks(detector, photo):
    (face,) = detector.detect([photo])[0]
    assert iou(face.box_xyxy, FACE_XYXY) > 0.7
    assert face.confidence > 0.99
    left_eye, right_eye, nose, mouth_left, mouth_right = face.landmarks_xy
    assert left_eye[0] < nose[0] < right_eye[0]
    assert mouth_left[0] < mouth_right[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
    assert (face.landmarks_xy > face.box_xyxy[:2]).all()
    assert (face.landmarks_xy < face.box_xyxy[2:]).all()
    assert face.box_xyxy.dtype == face.landmarks_xy.dtype == np.float32


def test_finds_every_face_of_a_picture(detector, photo):
    places = [(40, 60, 0.65), (500, 30, 1.0), (1000, 500, 2.0), (1600, 700, 0.8), (100, 600, 1.4)]
    faces = detector.detect([placed(photo, (1920, 1080), places)])[0]
    assert len(faces) == len(places)
    for place in places:
        assert max(iou(face.box_xyxy, face_at(*place)) for face in faces) > 0.6
    assert [face.confidence for face in faces] == sorted((face.confidence for face in faces), reverse=True)


@pytest.mark.parametrize("place", [(0, 0, 1.2), (1600, 760, 1.2)])
def test_finds_a_face_in_a_corner(detector, photo, place):
    picture = placed(photo, (1920, 1080), [place])
    (face,) = detector.detect([picture])[0]
    assert iou(face.box_xyxy, face_at(*place)) > 0.6


def test_finds_a_face_cut_by_the_border(detector, photo):
    (face,) = detector.detect([np.ascontiguousarray(photo[90:, :])])[0]
    assert iou(face.box_xyxy, FACE_XYXY - np.array([0, 90, 0, 90])) > 0.5


def test_a_batch_of_mixed_sizes_gives_what_single_images_give(detector, photo):
    images = [
        photo,
        np.zeros((1, 1, 3), dtype=np.uint8),
        placed(photo, (1280, 720), [(30, 40, 1.0), (700, 300, 1.5)]),
        np.ascontiguousarray(photo[:, ::-1]),
        np.zeros((300, 200, 3), dtype=np.uint8),
    ]
    together = detector.detect(images)
    assert [len(faces) for faces in together] == [1, 0, 2, 1, 0]
    for image, faces in zip(images, together, strict=True):
        assert_same(detector.detect([image])[0], faces)


def test_an_image_shrunk_by_the_caller_gives_the_same_faces(detector, photo):
    picture = placed(photo, (1920, 1080), [(300, 200, 1.5)])
    width, height = detector.detection_size_wh(1920, 1080)
    shrunk = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    faces = [face.scaled(1920 / width, 1080 / height) for face in detector.detect([shrunk])[0]]
    assert_same(detector.detect([picture])[0], faces)


@pytest.mark.parametrize(
    ("size_wh", "expected"),
    [
        ((1920, 1080), (455, 256)),
        ((1080, 1920), (256, 455)),
        ((7680, 4320), (455, 256)),
        ((200, 100), (200, 100)),
        ((1, 1), (1, 1)),
        ((100_000, 2), (8192, 1)),
    ],
)
def test_detection_size(detector, size_wh, expected):
    assert detector.detection_size_wh(*size_wh) == expected
    assert detector.detection_size_wh(*expected) == expected


def test_an_8k_frame(detector, photo):
    place = (3000, 1500, 4.0)
    (face,) = detector.detect([placed(photo, (7680, 4320), [place])])[0]
    assert iou(face.box_xyxy, face_at(*place)) > 0.6


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (11, 11), (12, 12), (13, 40), (3, 20_000)])
def test_tiny_and_thin_images_have_no_face(detector, shape):
    assert detector.detect([np.full((*shape, 3), 200, dtype=np.uint8)]) == [[]]


def test_no_face_in_black_or_noise(detector):
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    assert detector.detect([np.zeros_like(noise), noise]) == [[], []]


def test_no_images(detector):
    assert detector.detect([]) == []


def test_images_that_are_views_are_read_right(detector, photo):
    assert_same(detector.detect([photo[:, ::-1]])[0], detector.detect([np.ascontiguousarray(photo[:, ::-1])])[0])


def test_the_image_is_not_changed(detector, photo):
    before = photo.copy()
    detector.detect([photo])
    np.testing.assert_array_equal(photo, before)


def test_threads_do_not_disturb_each_other(detector, photo):
    pictures = [placed(photo, (960, 540), [(20 * i, 10 * i, 1.0)]) for i in range(12)]
    alone = [detector.detect([picture])[0] for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(
            alone, pool.map(lambda picture: detector.detect([picture])[0], pictures), strict=True
        ):
            assert len(expected) == 1
            assert_same(expected, found)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((10, 10), np.uint8), r"uint8 \[10, 10\]"),
        (np.zeros((10, 10, 4), np.uint8), r"uint8 \[10, 10, 4\]"),
        (np.zeros((10, 10, 3), np.float32), r"float32 \[10, 10, 3\]"),
        (np.zeros((0, 10, 3), np.uint8), "10x0"),
        ("photo.jpg", "got str"),
    ],
)
def test_wrong_images_are_refused(detector, image, message):
    with pytest.raises(OptionError, match=message):
        detector.detect([image])


def weights_script():
    """The script that makes the committed networks, as a module."""
    for package in ("joblib", "onnx"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("make_mtcnn_weights", ROOT / "scripts/make_mtcnn_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("network", ["pnet", "rnet", "onet"])
def test_the_committed_networks_are_what_the_builder_makes(network):
    onnx = pytest.importorskip("onnx")
    graphs = weights_script()
    built = graphs.build(network)
    committed = onnx.load(graphs.WEIGHTS_DIR / f"{network}.onnx")
    onnx.checker.check_model(committed, full_check=True)
    assert [(node.op_type, list(node.input)) for node in built.graph.node] == [
        (node.op_type, list(node.input)) for node in committed.graph.node
    ]
    for ours, theirs in zip(built.graph.initializer, committed.graph.initializer, strict=True):
        assert ours.name == theirs.name
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(ours), onnx.numpy_helper.to_array(theirs))


@pytest.mark.parametrize(("network", "size"), [("pnet", 40), ("rnet", 24), ("onet", 48)])
def test_the_networks_compute_what_the_plain_layers_compute(network, size):
    """The rewritten graphs against the layers of the paper, one after the other, in float64."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    graphs = weights_script()
    crops = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    weights = [torch.from_numpy(array) for array in graphs.load_weights(network)]
    functional = torch.nn.functional

    x = (torch.from_numpy(crops).double().permute(0, 3, 1, 2) - 127.5) / 128
    pools = {"pnet": [2, 0, 0], "rnet": [3, 3, 0], "onet": [3, 3, 2, 0]}[network]
    for pool in pools:
        kernel, bias, slope, *weights = weights
        x = functional.prelu(functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias), slope)
        if pool:
            x = functional.max_pool2d(x, pool, 2, ceil_mode=True)
    if network == "pnet":
        x = x.permute(0, 2, 3, 1)
    else:
        kernel, bias, slope, *weights = weights
        x = functional.prelu(x.permute(0, 3, 2, 1).flatten(1) @ kernel + bias, slope)
    heads = [x @ kernel + bias for kernel, bias in zip(weights[::2], weights[1::2], strict=True)]
    box, *landmarks, classes = heads
    expected = torch.cat([box, classes[..., 1:] - classes[..., :1], *landmarks], dim=-1).numpy()

    session = onnxruntime.InferenceSession(graphs.WEIGHTS_DIR / f"{network}.onnx", providers=["CPUExecutionProvider"])
    images = crops.transpose(0, 3, 1, 2).astype(np.float32) if network == "pnet" else crops
    (output,) = session.run(None, {session.get_inputs()[0].name: images})
    if network == "pnet":
        output = output[:, :5].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(output, expected, atol=1e-4)  # float32 sums of up to 1152 products
