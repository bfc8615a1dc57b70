"""What runs on a machine: the form that was measured, or the one that needs nothing, with the reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deepfake_preprocess.contract import forms
from deepfake_preprocess.contract.forms import ServedForm, cpu_features, needs_of
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import RepositoryError
from deepfake_serve import _forms
from deepfake_serve._forms import choose_form

SPEC = ModelSpec(name="tiny", architecture="timm:x")
FP32 = ServedForm("onnxruntime", "fp32", "model.onnx")
BF16 = ServedForm("openvino", "bf16", "model.onnx", ("avx512_bf16", "amx_bf16"))


def config_of(form: ServedForm) -> SimpleNamespace:
    named = {"engine": form.engine, "served_precision": form.precision}
    return SimpleNamespace(parameters={key: SimpleNamespace(string_value=value) for key, value in named.items()})


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    engines = {"onnxruntime", "openvino"}
    monkeypatch.setattr(_forms, "is_installed", lambda engine: engine in engines)
    return engines


def test_a_form_runs_where_everything_that_was_measured_is_there():
    manifest = Manifest(SPEC, {}, "fp32", forms=(BF16, FP32))
    assert choose_form(manifest, config_of(BF16), {"avx2", *BF16.needs}) == (BF16, "")
    assert choose_form(manifest, config_of(FP32), {"avx2"}) == (FP32, "")
    assert choose_form(Manifest(SPEC, {}, "fp32"), config_of(FP32), ()) == (FP32, "")


def test_another_cpu_gets_fp32_and_a_sentence():
    manifest = Manifest(SPEC, {}, "fp32", forms=(BF16, FP32))
    form, note = choose_form(manifest, config_of(BF16), {"avx2", "avx512_bf16"})
    assert form == FP32
    assert note == (
        "tiny version 1 is served by ONNX Runtime in FP32 instead of OpenVINO in BF16: it was measured on a CPU with "
        "amx_bf16, which this one lacks"
    )


def test_an_engine_that_is_not_installed_is_named_with_the_command(installed):
    installed.remove("openvino")
    manifest = Manifest(SPEC, {}, "fp32", forms=(BF16, FP32))
    form, note = choose_form(manifest, config_of(BF16), set(BF16.needs))
    assert form == FP32
    assert "OpenVINO is not installed; run: pip install" in note
    only = ServedForm("openvino", "fp32", "model.onnx")
    with pytest.raises(RepositoryError, match=r"cannot run here: .* OpenVINO is not installed"):
        choose_form(Manifest(SPEC, {}, "fp32", forms=(only,)), config_of(only), ())


def test_needs_are_the_flags_that_decide_the_speed_and_were_there(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni amx_int8\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    monkeypatch.setattr(forms, "CPU_INFO", info)
    monkeypatch.setattr(forms.platform, "machine", lambda: "x86_64")
    features = cpu_features()
    assert features == {"fpu", "avx2", "avx_vnni", "amx_int8"}
    assert needs_of("openvino", "int8", features) == ("avx_vnni", "amx_int8")
    assert needs_of("openvino", "bf16", features) == needs_of("onnxruntime", "fp32", features) == ()
    monkeypatch.setattr(forms, "CPU_INFO", tmp_path / "absent")
    assert cpu_features() == frozenset()
