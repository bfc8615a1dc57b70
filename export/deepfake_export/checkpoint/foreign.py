"""What a file is that is no checkpoint, by its first bytes, and how the weights are had from it."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

STARTS = {
    b"\x89HDF": "an HDF5 file, as Keras writes them; weights of a PyTorch network are needed",
    b"GGUF": "a GGUF file; weights of a PyTorch network are needed",
    b"\x93NUMPY": "a NumPy array; weights of a PyTorch network are needed",
    b"\x1f\x8b": "a gzip archive; unpack it, and name the checkpoint in it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it, and name the checkpoint in it",
    b"Rar!": "a RAR archive; unpack it, and name the checkpoint in it",
    b"BZh": "a bzip2 archive; unpack it, and name the checkpoint in it",
    b"\xfd7zXZ": "an xz archive; unpack it, and name the checkpoint in it",
    b"ftrt": "a TensorRT plan; export the checkpoint that it was built from",
}
"""First bytes of files that people have beside their checkpoints, or in place of them."""
WEB_PAGE = (b"<!doctype html", b"<html")
SHARDS_KEY = "weight_map"
"""What the index of a file in several parts holds, as Hugging Face's libraries write it."""


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts as the format says: the length of a JSON object, and that object."""
    with path.open("rb") as file:
        length, start = file.read(8), file.read(1)
    return start == b"{" and int.from_bytes(length, "little") <= path.stat().st_size - 8


def describe_foreign(path: Path) -> str:
    """Return what a file is that cannot be read as a checkpoint, with what to do; empty where it is not known."""
    with path.open("rb") as file:
        start = file.read(512)
    for mark, what in STARTS.items():
        if start.startswith(mark):
            return what
    if start.lstrip().lower().startswith(WEB_PAGE):
        return "a web page, which a download gave in place of the checkpoint; get the file itself"
    if start.lstrip().startswith(b"{"):
        return _describe_json(path)
    if tarfile.is_tarfile(path):  # first: one that holds a zip file last is taken for that
        with tarfile.open(path) as archive:
            return _describe_archive("tar", archive.getnames())
    if zipfile.is_zipfile(path):
        return _describe_zip(path)
    return ONNX if _is_onnx(path) else ""


ONNX = (
    "an ONNX model, which is what an export makes; name the checkpoint that it was made of, so that the served model "
    "can be proved against it"
)


def _is_onnx(path: Path) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return bool(onnx.load(str(path), load_external_data=False).graph.node)
    except (DecodeError, OSError, ValueError):
        return False


def _describe_json(path: Path) -> str:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return ""
    if SHARDS_KEY not in data:
        return "a JSON file without weights; name the checkpoint"
    parts = ", ".join(f"'{name}'" for name in sorted(set(data[SHARDS_KEY].values())))
    return (
        "only the index of weights in several files; put them into one: from safetensors.torch import load_file, "
        f"save_file; save_file({{k: v for part in [{parts}] for k, v in load_file(part).items()}}, "
        "'whole.safetensors')"
    )


def _describe_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    files = {PurePosixPath(name).name for name in names}
    if "archive_format" in files or "serialized_exported_program.json" in files:
        return (
            "a program of torch.export; save its weights, as torch.save(torch.export.load(path).state_dict, "
            "'weights.pth')"
        )
    if "constants.pkl" in files:
        return "a TorchScript file; set 'architecture: torchscript' in the spec"
    if "model.weights.h5" in files:
        return "a Keras file; weights of a PyTorch network are needed"
    if names and all(name.endswith(".npy") for name in names):
        return "a file of NumPy arrays; have the weights saved by torch.save(model.state_dict(), 'weights.pth')"
    return "" if "data.pkl" in files else _describe_archive("zip", names)


def _describe_archive(kind: str, names: list[str]) -> str:
    held = f" of {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}" if names else ""
    return f"a {kind} archive{held}; unpack it, and name the checkpoint in it"
