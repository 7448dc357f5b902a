"""A timm model by name, with weights from the hub, a checkpoint file or a seed."""

from __future__ import annotations

import difflib
import hashlib
from typing import TYPE_CHECKING, Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.data import resolve_model_data_config

from pipeline.checkpoint import SUFFIXES, local_checkpoint, read_checkpoint, summary
from pipeline.config import StorageConfig
from pipeline.errors import HubError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_RANDOM = "random:"
_ANY_STORAGE = StorageConfig()


def load_model(
    name: str,
    weights: str,
    image_size: int | None = None,
    *,
    classifier: bool = False,
    storage: StorageConfig = _ANY_STORAGE,
) -> torch.nn.Module:
    """A timm model on the CPU, in float32 and evaluation mode.

    Args:
        name: timm's name, with or without pretrained tag.
        weights: ``pretrained``, a checkpoint file (a path, or ``s3://``), or ``random:SEED`` (timm's own
            initialisation, seeded).
        image_size: side of the input in pixels where it is not the model's own; a model with position embeddings is
            built for it, and timm resamples those of the weights.
        classifier: keep the model's own classifier; where it has none, ``num_classes`` of what comes back is 0.
        storage: how to reach a bucket.

    Raises:
        UsageError: no such model, no such file, or a file that does not fit the model.
        HubError: the hub is out of reach.
    """
    check_name(name)
    sizing: dict[str, Any] = _sizing(name, image_size)
    if weights.startswith(_RANDOM):
        model = _random_model(name, weights, sizing)
    elif weights == "pretrained":
        model = _pretrained_model(name, sizing if classifier else {"num_classes": 0, **sizing})
    elif weights.endswith(SUFFIXES):
        model = _checkpoint_model(name, weights, local_checkpoint(weights, "--weights", storage), sizing)
    else:
        raise UsageError(
            f"--weights {weights}: give 'pretrained', 'random:SEED', or a file ending in {', '.join(SUFFIXES)}"
        )
    if not classifier and model.num_classes:
        model.reset_classifier(0)  # type: ignore[operator]
    model.eval().requires_grad_(requires_grad=False)
    return model


def check_name(name: str) -> None:
    """Raises UsageError with the nearest names when timm has no such model."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; names close to it: {', '.join(close)}" if close else "; `timm.list_models()` names them all"
        raise UsageError(f"timm {timm.__version__} has no model {name!r}{hint}")
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        tagged = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise UsageError(f"timm {timm.__version__} has no weights {name!r}; of this model it has {tagged}") from error


def _sizing(name: str, image_size: int | None) -> dict[str, int]:
    """The argument that builds a model for another input size; models without position embeddings need none.

    Raises:
        UsageError: the size is not a multiple of the model's patches.
    """
    if image_size is None:
        return {}
    with torch.device("meta"):
        patch_embed = getattr(timm.create_model(name), "patch_embed", None)
    patch: Any = getattr(patch_embed, "patch_size", None)
    side = max(patch) if isinstance(patch, tuple) else patch
    if isinstance(side, int) and image_size % side:
        below = image_size // side * side
        near = f"{below} and {below + side} are" if below else f"{side} is"
        raise UsageError(
            f"{name} takes sizes that are multiples of its patches of {side} pixels: {near}, not {image_size}"
        )
    return {"img_size": image_size} if hasattr(patch_embed, "img_size") else {}


def _random_model(name: str, weights: str, options: dict[str, Any]) -> torch.nn.Module:
    seed = weights.removeprefix(_RANDOM)
    if not (seed.isascii() and seed.isdecimal() and int(seed) < 2**63):
        raise UsageError(f"--weights {weights}: the seed after {_RANDOM!r} must be a whole number, as in random:0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _create(name, pretrained=False, **options)


def _pretrained_model(name: str, options: dict[str, Any]) -> torch.nn.Module:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.has_weights:
        raise UsageError(f"timm has no pretrained weights for {name!r}; give --weights FILE or --weights random:SEED")
    try:
        _reach_hub(config)
        return _create(name, pretrained=True, **options)
    except Exception as error:
        # Everything a hub client raises: connection, proxy, certificate, authentication, cache and offline errors.
        raise HubError(
            f"the pretrained weights of {name} could not be fetched ({summary(error, lines=1)}). Ways out: give the"
            " hub a route (HTTPS_PROXY), or a mirror (HF_ENDPOINT); fill its cache on a machine that has one (HF_HOME,"
            " then HF_HUB_OFFLINE=1); download the checkpoint and give --weights FILE; or, to try things out only,"
            " --weights random:0"
        ) from error


def _reach_hub(config: Any) -> None:
    """Asks the hub once, within HF_HUB_ETAG_TIMEOUT, for weights that are not in its cache.

    The download itself would try each of two files six times, for a minute in all, before it says the same.
    """
    if not config.hf_hub_id:
        return
    repository, _, revision = config.hf_hub_id.partition("@")
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    if any(isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, files[0], revision=revision or None))
    except HfHubHTTPError:
        return  # the hub is there; what it objects to, the download says better, or finds the other file


def _checkpoint_model(name: str, location: str, path: Path, sizing: dict[str, int]) -> torch.nn.Module:
    """The model with the classifier of the checkpoint, whatever its size; ``num_classes`` is 0 where it has none."""
    with torch.device("meta"):
        known = timm.create_model(name).state_dict().keys()
    state = read_checkpoint(path, "--weights", known)
    failure: Exception | None = None
    for classes in _class_counts(name, {key: tuple(value.shape) for key, value in state.items()}):
        # timm loads strictly only where the classifier fits; else it would leave whatever is missing random.
        overlay = {
            "state_dict": dict(state),  # timm's filters change it
            "hf_hub_id": None,
            "url": "",
            "num_classes": classes,
            "label_offset": 0,
            "custom_load": False,
        }
        try:
            model = _create(name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **sizing)
        except Exception as error:  # load_state_dict's RuntimeError, or what timm's filters trip over
            failure = failure or error
        else:
            model.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
            return model
    assert failure is not None
    raise UsageError(f"--weights {location} does not fit {name}: {summary(failure, lines=8)}") from failure


def _class_counts(name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """How many classes the checkpoint's classifier may have, the likeliest first; 0 is none."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    shape = next((shapes[f"{first}.weight"] for first in _classifiers(config)[:1] if f"{first}.weight" in shapes), None)
    if shape:
        return [shape[0]]
    # A checkpoint from elsewhere may have it under a name that only timm's filter of the model knows.
    return [0, config.num_classes] if config is not None and config.num_classes else [0]


def _create(name: str, **options: Any) -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model(name, **options)
    return model


def data_config(model: torch.nn.Module) -> Mapping[str, Any]:
    """The model's own preprocessing, in timm's terms."""
    config: Mapping[str, Any] = resolve_model_data_config(model)
    return config


def digests(model: torch.nn.Module) -> tuple[str, str]:
    """SHA-256 (hex) of the weights without the classifier, and of the classifier; whatever file they came from."""
    names = tuple(f"{name}." for name in _classifiers(model.pretrained_cfg))
    state = model.state_dict()
    classifier = {key: value for key, value in state.items() if key.startswith(names)}
    return digest({key: value for key, value in state.items() if key not in classifier}), digest(classifier)


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors (hex)."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _classifiers(config: Any) -> tuple[str, ...]:
    """Names of the classifiers in a model, as timm has them."""
    names = config.get("classifier") if isinstance(config, dict) else getattr(config, "classifier", None)
    return (names,) if isinstance(names, str) else tuple(names or ())
