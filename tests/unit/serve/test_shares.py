"""Instances and threads of a model: as given, as tuned, or as many as cores and memory allow."""

import pytest
from placeholder_models import FP32, SPEC, edit_config, write_model

from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.errors import OptionError
from deepfake_serve import _shares
from deepfake_serve._repository import check_repository
from deepfake_serve._shares import CpuShare, cpu_share, model_share, weight_bytes


@pytest.mark.parametrize(
    ("cores", "given", "expected"),
    [
        (1, {}, CpuShare(2, 1)),
        (2, {}, CpuShare(2, 1)),
        (16, {}, CpuShare(8, 2)),
        (2, {"instances": 1}, CpuShare(1, 2)),
        (8, {"threads": 4}, CpuShare(2, 4)),
        (2, {"threads": 4}, CpuShare(2, 4)),
        (2, {"instances": 3}, CpuShare(3, 1)),
        (2, {"instances": 3, "threads": 5}, CpuShare(3, 5)),
    ],
)
def test_instances_times_threads_is_the_number_of_cores_and_there_are_two_instances_at_least(cores, given, expected):
    assert cpu_share(cores, **given) == expected


@pytest.mark.parametrize("given", [{"instances": 0}, {"threads": 0}, {"instances": -1}, {"threads": -2}])
def test_shares_below_one_are_refused(given):
    with pytest.raises(OptionError, match="allowed: a whole number from 1"):
        cpu_share(4, **given)


def test_what_was_tuned_for_so_many_cores_is_used_unless_something_else_is_asked_for(tmp_path):
    write_model(tmp_path)
    options = triton_config.ServingOptions(instances=3, threads=2, tuned_for_cores=4)
    path = tmp_path / "detector" / triton_config.EMBEDDED_CONFIG_NAME
    path.write_text(triton_config.embedded_config(SPEC, forms=FP32, options=options), encoding="utf-8")
    (model,) = check_repository(tmp_path)
    assert model_share(model, 4) == CpuShare(3, 2)
    assert model_share(model, 8) == CpuShare(8, 1)
    assert model_share(model, 4, instances=1) == CpuShare(1, 4)
    edit_config(tmp_path, lambda config: config.parameters.pop(triton_config.CORES_PARAMETER))
    (model,) = check_repository(tmp_path)
    assert model_share(model, 4) == CpuShare(4, 1)


@pytest.mark.parametrize(
    ("cores", "memory", "expected"),
    [
        (8, 16, CpuShare(8, 1)),
        (8, 15.9, CpuShare(4, 2)),  # seven fit, of which one core would be left over
        (8, 6.1, CpuShare(2, 4)),  # three fit
        (7, 6.1, CpuShare(3, 2)),  # with one, no core would be left over
        (7, 3.9, CpuShare(1, 7)),
        (2, 3.9, CpuShare(1, 2)),
        (2, 0.1, CpuShare(1, 2)),
        (16, 100, CpuShare(8, 2)),
    ],
)
def test_instances_that_do_not_fit_into_half_of_the_memory_become_threads(
    tmp_path, monkeypatch, cores, memory, expected
):
    write_model(tmp_path)
    (model,) = check_repository(tmp_path)
    instance_bytes = _shares.HELD_COPIES * weight_bytes(model)
    monkeypatch.setattr(_shares, "usable_memory", lambda: int(memory * instance_bytes) + 1)
    assert model_share(model, cores) == expected
    assert model_share(model, cores, instances=3) == cpu_share(cores, instances=3), "asked for is given"
