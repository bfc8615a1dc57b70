"""What is committed says what the code does: the spec's documentation and the demo model's configurations."""

from __future__ import annotations

import dataclasses
import re

import yaml
from checkout import ROOT

from deepfake_export.checkpoint.readings import WEIGHTS_KEYS, WRAPPER_PREFIXES
from deepfake_export.demo.checkpoint import DEMOS
from deepfake_export.demo.untrained import UNTRAINED_SPEC
from deepfake_export.ensemble.spec import EnsembleSpec
from deepfake_export.repository.configs import refresh_configs
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.repository import CONFIG_NAMES
from deepfake_preprocess.contract.spec import PLAIN_LAYERS, SIZED_LAYERS, ModelSpec
from deepfake_preprocess.contract.triton_config import PRODUCTION_MAX_BATCH_SIZE

PAGE = (ROOT / "docs/model-spec.md").read_text(encoding="utf-8")


def test_the_example_is_a_spec_and_shows_every_field_a_person_sets(tmp_path):
    example, *_ = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(example, encoding="utf-8")
    assert ModelSpec.from_yaml(path).head.fake_index == 0
    set_by_commands = {"version", "checkpoint_sha256", "calibration"}
    assert set(yaml.safe_load(example)) == {item.name for item in dataclasses.fields(ModelSpec)} - set_by_commands


def test_the_head_and_the_ensemble_of_the_page_can_be_read(tmp_path):
    _, head, ensemble = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "head.yaml").write_text(head, encoding="utf-8")
    spec = ModelSpec.from_yaml(tmp_path / "head.yaml")
    assert (spec.head.layers, spec.head.fake_index) == (("linear:512", "relu", "dropout", "linear:2"), 0)
    (tmp_path / "ensemble.yaml").write_text(ensemble, encoding="utf-8")
    whole = EnsembleSpec.from_yaml(tmp_path / "ensemble.yaml")
    assert [member.spec.name for member in whole.members] == ["b4", "convnext", "swin", "frequency"]
    assert whole.spec.input_size_wh == (380, 380)
    assert whole.members[3].in_channels == 1
    assert whole.meta_model is not None
    assert whole.meta_model.coef == (1.9, 1.4, 1.2, 0.3)
    for layer in (*SIZED_LAYERS, *PLAIN_LAYERS):
        assert f"`{layer}`" in PAGE or f"`{layer}:N`" in PAGE


def test_the_table_lists_every_field():
    documented = re.findall(r"^\| `([\w.]+)` \|", PAGE, flags=re.MULTILINE)
    flat = [
        name
        for key, value in UNTRAINED_SPEC.to_dict().items()
        for name in ([f"{key}.{sub}" for sub in value] if isinstance(value, dict) else [key])
    ]
    assert sorted(documented) == sorted(flat)


def test_the_keys_and_prefixes_are_those_of_the_loader():
    for name in (*WEIGHTS_KEYS, *WRAPPER_PREFIXES):
        assert f"`{name}`" in PAGE


def test_the_committed_configurations_are_what_an_export_writes(tmp_path):
    """Of the demo model, with the default options; only the checkpoint's hash is not known before an export."""
    name = DEMOS["tiny"].name
    spec = ModelSpec.from_yaml(ROOT / f"export/deepfake_export/demo/{name}.yaml")
    refresh_configs(tmp_path, Manifest(spec, {}, "fp32"), max_batch_size=PRODUCTION_MAX_BATCH_SIZE)
    committed = ROOT / "model_repository" / name
    for name in CONFIG_NAMES:
        assert (committed / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8"), (
            f"regenerate with deepfake_export.repository.configs.refresh_configs: {name}"
        )
