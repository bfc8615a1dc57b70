"""Ready specs of published detectors, which `deepfake init-spec` writes.

Every value comes from the authors' own code, whose place is part of the recipe; what they do that a spec cannot say
is noted beside it. No weights come with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from deepfake_preprocess.contract.spec import Crop, Head, ModelSpec

ZERO = (0.0, 0.0, 0.0)
ONE = (1.0, 1.0, 1.0)
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published detector.

    Attributes:
        title: what it is, with its paper.
        source: where the authors' code and weights are.
        file: the authors' file that it reads.
        spec: its contract.
        mark: part of a name that every such file has.
        remarks: by field of the spec, what a reader should know of it.
    """

    title: str
    source: str
    file: str
    spec: ModelSpec
    mark: str
    remarks: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def _spec(name: str, architecture: str, size_px: int, **fields: object) -> ModelSpec:
    values = {"crop": Crop(0.3), "head": Head("softmax"), **fields}
    return ModelSpec(name, architecture, input_height_px=size_px, input_width_px=size_px, **values)  # type: ignore[arg-type]


_BENCH = "github.com/SCLBD/DeepfakeBench"
_BENCH_CROP = {
    "crop": "the benchmark warps five landmarks to a template and adds 30% around it; this square is close to that",
    "head": "their labels are 0 = real, 1 = fake",
}
_CLIP_TEXTS = (
    *(
        f"{before}{name}"
        for before in ("", "model.", "module.model.", "body.")
        for name in ("transformer.*", "positional_embedding")
    ),
    *("*token_embedding.*", "*ln_final.*", "*text_projection", "*logit_scale"),
)
"""The half of CLIP that reads texts; `transformer` and `positional_embedding` are also names of the other half."""
_ALIGNED = Crop(0.15, "eyes")

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "faceforensics_xception": Recipe(
            "Xception of FaceForensics++ (Roessler et al., ICCV 2019)",
            "github.com/ondyari/FaceForensics, classification/",
            "full_c23.p: a pickled TransferModel",
            _spec("faceforensics_xception", "timm:legacy_xception", 299, mean=HALF, std=HALF, crop=Crop(0.15)),
            "last_linear.",
            {"crop": "a square of 1.3 times the box of dlib's detector", "head": "their label 1 is fake"},
        ),
        "dfdc_winner": Recipe(
            "EfficientNet-B7 of the winner of the DFDC (Seferbekov, 2020)",
            "github.com/selimsef/dfdc_deepfake_challenge",
            "final_*_DeepFakeClassifier_tf_efficientnet_b7_ns_*: {epoch, state_dict, bce_best}",
            _spec(
                "dfdc_winner",
                "timm:tf_efficientnet_b7",
                380,
                head=Head("sigmoid"),
                crop=Crop(0.33),
                ignore_keys=("*encoder.classifier.*",),
            ),
            "encoder.conv_stem.",
            {
                "crop": "the box and a third of it on each side; the authors keep its aspect ratio, with black bars",
                "ignore_keys": "the classifier of ImageNet, which stays in their encoder",
                "head": "they average seven such files, and several frames by their own rule: see ensembles",
            },
        ),
        "deepfakebench_xception": Recipe(
            "Xception as DeepfakeBench trains it (Yan et al., NeurIPS 2023)",
            f"{_BENCH}, training/detectors/xception_detector.py",
            "xception_best.pth: a state dict",
            _spec(
                "deepfakebench_xception",
                "timm:legacy_xception",
                256,
                mean=HALF,
                std=HALF,
                crop=_ALIGNED,
                ignore_keys=("*adjust_channel.*",),
            ),
            "adjust_channel.",
            {**_BENCH_CROP, "ignore_keys": "built with every Xception of theirs, used by UCF alone"},
        ),
        "deepfakebench_efficientnet_b4": Recipe(
            "EfficientNet-B4 as DeepfakeBench trains it (Yan et al., NeurIPS 2023)",
            f"{_BENCH}, training/detectors/efficientnetb4_detector.py",
            "effnb4_best.pth: a state dict",
            _spec(
                "deepfakebench_efficientnet_b4",
                "published:deepfakebench_efficientnet_b4",
                256,
                mean=HALF,
                std=HALF,
                crop=_ALIGNED,
            ),
            "last_layer.",
            _BENCH_CROP,
        ),
        "f3net": Recipe(
            "F3Net (Qian et al., ECCV 2020), its FAD branch as DeepfakeBench trains it",
            f"{_BENCH}, training/detectors/f3net_detector.py",
            "f3net_best.pth: a state dict",
            _spec(
                "f3net",
                "published:f3net",
                256,
                mean=HALF,
                std=HALF,
                crop=_ALIGNED,
                ignore_keys=("*adjust_channel.*",),
            ),
            "FAD_head.",
            {**_BENCH_CROP, "input_height_px": "its filters are made for this size"},
        ),
        "ucf": Recipe(
            "UCF: Uncovering Common Features (Yan et al., ICCV 2023), as DeepfakeBench trains it",
            f"{_BENCH}, training/detectors/ucf_detector.py",
            "ucf_best.pth: a state dict",
            _spec(
                "ucf",
                "published:ucf",
                256,
                mean=HALF,
                std=HALF,
                crop=_ALIGNED,
                ignore_keys=("*encoder_c.*", "*con_gan.*", "*head_spe.*", "*block_spe.*", "*encoder_f.last_linear.*"),
            ),
            "block_sha.",
            {**_BENCH_CROP, "ignore_keys": "what is for training alone: contents, reconstruction, kinds of fakes"},
        ),
        "sbi": Recipe(
            "EfficientNet-B4 trained on self-blended images (Shiohara and Yamasaki, CVPR 2022)",
            "github.com/mapooon/SelfBlendedImages",
            "FFraw.tar, FFc23.tar: {model, optimizer, epoch}",
            _spec("sbi", "published:efficientnet_pytorch_b4", 380, mean=ZERO, std=ONE, crop=Crop(0.125)),
            "net._blocks.",
            {"crop": "an eighth of the box of RetinaFace on each side", "mean": "pixels are divided by 255, no more"},
        ),
        "efficientnet_autoatt_b4": Recipe(
            "EfficientNetAutoAttB4 (Bonettini et al., ICPR 2020)",
            "github.com/polimi-ispl/icpr2020dfdc",
            "EfficientNetAutoAttB4_*_bestval-*.pth: a state dict, or {net, ...}",
            _spec(
                "efficientnet_autoatt_b4",
                "published:efficientnet_autoatt_b4",
                224,
                head=Head("sigmoid"),
                crop=Crop(0.2),
            ),
            "attconv.",
            {"crop": "a fifth of the box of BlazeFace on each side, two fifths above"},
        ),
        "meso4": Recipe(
            "Meso4 (Afchar et al., WIFS 2018), in PyTorch",
            "github.com/HongguLiu/MesoNet-Pytorch",
            "Meso4_deepfake.pkl, best.pkl: a state dict",
            _spec("meso4", "published:meso4", 256, head=Head("softmax", 0), mean=HALF, std=HALF, crop=Crop(0.15)),
            "conv4.",
            {
                "head": "classes in the order of their folders: df, real. DeepfakeBench trains it with fake_index: 1",
                "name": "the Keras files of github.com/DariusAf/MesoNet (.h5) are not read",
            },
        ),
        "mesoinception4": Recipe(
            "MesoInception4 (Afchar et al., WIFS 2018), in PyTorch",
            "github.com/HongguLiu/MesoNet-Pytorch",
            "MesoInception4_deepfake.pkl, best.pkl: a state dict",
            _spec(
                "mesoinception4",
                "published:mesoinception4",
                256,
                head=Head("softmax", 0),
                mean=HALF,
                std=HALF,
                crop=Crop(0.15),
            ),
            "Incption1_conv1.",
            {"head": "classes in the order of their folders: df, real. DeepfakeBench trains it with fake_index: 1"},
        ),
        "cvit": Recipe(
            "CViT2, a convolutional vision transformer (Wodajo and Atnafu, 2021)",
            "github.com/erprogs/CViT, model/cvit.py",
            "cvit2_deepfake_detection_ep_50.pth: a state dict, or {state_dict, ...}",
            _spec("cvit", "published:cvit", 224, head=Head("softmax", 0), crop=Crop(0.05)),
            "patch_to_embedding.",
            {
                "head": "class 0 is fake; the authors take a sigmoid of each value, and the larger one decides",
                "crop": "the box of dlib's detector and 10 pixels",
            },
        ),
        "npr": Recipe(
            "NPR, how neighboring pixels differ (Tan et al., CVPR 2024)",
            "github.com/chuangchuangtan/NPR-DeepfakeDetection",
            "NPR.pth, model_epoch_last_3090.pth: a state dict",
            _spec("npr", "published:npr", 224, head=Head("sigmoid")),
            "fc1.",
            {
                "input_height_px": "they score whole generated pictures at their own size; resizing hides the traces",
                "crop": "a guess: it was not made for faces",
            },
        ),
        "universal_fake_detect": Recipe(
            "UniversalFakeDetect, a linear probe on CLIP ViT-L/14 (Ojha et al., CVPR 2023)",
            "github.com/WisconsinAIVision/UniversalFakeDetect",
            "model_epoch_best.pth of their training: {model, optimizer, total_steps}. fc_weights.pth is the last "
            "layer alone: save it with the state dict of CLIP, as {'model': {'model.visual.conv1.weight': ..., "
            "'fc.weight': ..., 'fc.bias': ...}}",
            _spec(
                "universal_fake_detect",
                "published:universal_fake_detect",
                224,
                head=Head("sigmoid"),
                mean=CLIP_MEAN,
                std=CLIP_STD,
                ignore_keys=_CLIP_TEXTS,
            ),
            "visual.transformer.",
            {"ignore_keys": "the half of CLIP that reads texts", "crop": "a guess: it was not made for faces"},
        ),
        "gend": Recipe(
            "GenD, CLIP ViT-L/14 with tuned norms (Yermakov et al., 2025)",
            "github.com/yermandy/GenD; huggingface.co/yermandy/GenD_CLIP_L_14",
            "model.safetensors, or a checkpoint of their training",
            _spec(
                "gend",
                "published:gend_clip_l14",
                224,
                mean=CLIP_MEAN,
                std=CLIP_STD,
                crop=_ALIGNED,
                ignore_keys=("*visual_projection.*", "*position_ids"),
            ),
            "vision_model.encoder.",
            {
                "crop": "they warp five landmarks to a template and add 30% around it; this square is close to that",
                "ignore_keys": "CLIP's way to texts, which they do not use",
            },
        ),
    }
)
