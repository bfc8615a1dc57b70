"""Builds the empty network that a spec's `architecture` names; weights are put in by `checkpoint`.

Nothing is downloaded: networks are built without pretrained weights. ``python:package.module:factory`` runs the
named function, so a spec is as trusted as the code it names; a checkpoint alone never runs code.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepfake_export.checkpoint.layers import attach_head, build_layers
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import SpecError
from deepfake_preprocess.support.extras import require_extra

if TYPE_CHECKING:
    from deepfake_export.published.networks import PublishedNetwork


KNOWN_BY = {"published": "docs/model-spec.md"}


def build_network(spec: ModelSpec, *, in_channels: int = 3, code_dir: Path | None = None) -> nn.Module:
    """Build the network of a spec with random weights; FP32 ``[N, in_channels, H, W]`` -> ``[N, num_logits]``.

    The files of ``torchscript`` and ``ensemble`` bring the network along. The module of a ``python:`` architecture is
    looked for in the current directory and in `code_dir`.

    Raises:
        SpecError: the architecture is unknown (the nearest name is suggested) or cannot be built.
        MissingExtraError: timm or torchvision is not installed.
    """
    input_shape = (in_channels, spec.input_height_px, spec.input_width_px)
    builders: dict[str, Callable[[], nn.Module]] = {
        "published": lambda: _build_published(spec, in_channels),
        "timm": lambda: _build_timm(spec, in_channels),
        "torchvision": lambda: _build_torchvision(spec, in_channels),
        "python": lambda: _build_python(spec, code_dir),
        "layers": lambda: build_layers(spec.head.layers, input_shape),
    }
    network = builders[spec.architecture_family]()
    if spec.head.layers and spec.architecture_family != "layers":
        attach_head(network, spec)
    return network


def build_light(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without memory for its weights, on the meta device, or where its code cannot, with it."""
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, SpecError):
        return make()


def build_renaming(spec: ModelSpec) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return what turns names in the file of a published network into those of `build_network`; mostly nothing."""
    if spec.architecture_family != "published":
        return dict
    return _published(spec).renamed


def _published(spec: ModelSpec) -> PublishedNetwork:
    from deepfake_export.published.networks import PUBLISHED

    if spec.architecture_name not in PUBLISHED:
        raise _unknown_architecture(spec, tuple(PUBLISHED))
    return PUBLISHED[spec.architecture_name]


def _build_published(spec: ModelSpec, in_channels: int) -> nn.Module:
    if in_channels != 3:
        raise SpecError(
            f"field 'architecture' is {spec.architecture!r}, which takes 3 channels and not {in_channels}"
        )
    published = _published(spec)
    return _call(spec, lambda: published.build(spec.head.num_logits))


def _build_timm(spec: ModelSpec, in_channels: int) -> nn.Module:
    timm = require_extra("timm", extra="export")
    name = spec.architecture_name
    # A "hf-hub:" name would be fetched from the network; `is_model` knows built-in names only.
    if not timm.is_model(name):
        raise _unknown_architecture(spec, timm.list_models())
    options: dict[str, Any] = {} if in_channels == 3 else {"in_chans": in_channels}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        # Transformers size their position embedding when they are built.
        options["img_size"] = (spec.input_height_px, spec.input_width_px)
    return _call(spec, lambda: timm.create_model(name, pretrained=False, num_classes=spec.head.num_logits, **options))


def _build_torchvision(spec: ModelSpec, in_channels: int) -> nn.Module:
    if in_channels != 3:
        raise SpecError(
            f"field 'architecture' is {spec.architecture!r}, which takes 3 channels and not {in_channels}; use a "
            "timm or python: architecture, or 'spectrum: {channels: rgb}'"
        )
    models = require_extra("torchvision.models", extra="export")
    name = spec.architecture_name
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown_architecture(spec, known)
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their slow random initialization warns, and is overwritten by the checkpoint anyway.
        options["init_weights"] = False
    if name.startswith("vit_"):
        options["image_size"] = spec.input_height_px
    return _call(spec, lambda: builder(weights=None, num_classes=spec.head.num_logits, **options))


def _build_python(spec: ModelSpec, code_dir: Path | None) -> nn.Module:
    module_name, _, factory_name = spec.architecture_name.partition(":")
    places = list(dict.fromkeys([Path.cwd(), *([code_dir] if code_dir else [])]))
    with _importable_from(places):
        try:
            module = importlib.import_module(module_name)
        except SystemExit as exc:
            raise SpecError(
                f"field 'architecture' is {spec.architecture!r}, but {module_name!r} is a program, which ended when "
                "it was imported; put what only the program does behind if __name__ == '__main__':"
            ) from exc
        # Whatever the module's own code raises when it is run.
        except Exception as exc:
            where = " or ".join(map(str, places))
            raise SpecError(
                f"field 'architecture' is {spec.architecture!r}, but importing {module_name!r} failed "
                f"({type(exc).__name__}: {exc}); install what is missing, or put the module into {where}"
            ) from exc
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            raise SpecError(
                f"field 'architecture' is {spec.architecture!r}, but {module_name!r} has no function "
                f"{factory_name!r}; name a function without arguments that returns the network"
            )
        return _call(spec, factory)


def _call(spec: ModelSpec, build: Callable[[], object]) -> nn.Module:
    """Run a builder; whatever it raises is about the architecture that the spec asked for."""
    try:
        network = build()
    except (Exception, SystemExit) as exc:
        raise SpecError(
            f"field 'architecture' is {spec.architecture!r}, which cannot be built for {spec.input_width_px}x"
            f"{spec.input_height_px} px and {spec.head.num_logits} output(s) ({type(exc).__name__}: {exc})"
        ) from exc
    if not isinstance(network, nn.Module):
        raise SpecError(
            f"field 'architecture' is {spec.architecture!r}, which returned {type(network).__name__}; "
            "it must return a torch.nn.Module"
        )
    return network


def _unknown_architecture(spec: ModelSpec, known: Sequence[str]) -> SpecError:
    family = spec.architecture_family
    near = difflib.get_close_matches(spec.architecture_name, known, n=3, cutoff=0.5)
    hint = f"see {KNOWN_BY.get(family, 'its list_models()')}"
    if near:
        hint = f"did you mean {' or '.join(f'{family}:{name}' for name in near)}?"
    return SpecError(f"field 'architecture' is {spec.architecture!r}, which {family} does not know; {hint}")


@contextmanager
def _importable_from(directories: Sequence[Path]) -> Iterator[None]:
    """Let imports find modules in directories, as `python -m` does and an installed command does not."""
    names = [str(directory) for directory in directories]
    sys.path[:0] = names
    try:
        yield
    finally:
        for name in names:
            sys.path.remove(name)
