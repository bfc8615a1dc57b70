import pytest

from deepfake_client.transport.protocol import served_model
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import PRECISION_PARAMETER, production_config, read_config
from deepfake_preprocess.errors import ModelContractError

SPEC = ModelSpec(name="m", architecture="torchscript")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.pbtxt"
    path.write_text(production_config(SPEC, precision="fp16"), encoding="utf-8")
    return read_config(path)


def test_a_served_model_states_its_contract_and_its_precision(config):
    model = served_model(config, version=3)
    assert (model.name, model.version, model.spec, model.precision) == ("m", 3, SPEC, "fp16")


def test_a_model_without_its_precision_is_refused(config):
    del config.parameters[PRECISION_PARAMETER]
    with pytest.raises(ModelContractError, match="model 'm' has no parameter 'served_precision'; export it again"):
        served_model(config, version=3)
