"""Reading weights that others trained: a file, or a pretrained model of timm by its name."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cxrbase_model.foreign import WeightsError, adapt
from cxrbase_model.plan import ModelSpec
from cxrbase_model.state import State

_WRAPPERS = (
    "teacher",
    "model",
    "state_dict",
    "module",
    "student",
)  # under what a checkpoint keeps its weights, best first


def read_file(path: Path, spec: ModelSpec, image_size: int) -> State:
    """The encoder of a .safetensors file, or of one that torch.save wrote, under our names; WeightsError names the file."""
    try:
        weights = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
        return adapt(weights, spec, image_size)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds {found[1]}, and only tensors and plain values" if found else "only files of torch.save"
        raise WeightsError(
            f"{path}: cannot be read as weights ({what} are read, since others could run anything; save its tensors alone)"
        ) from None
    except (OSError, safetensors.SafetensorError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({_first_line(error)})") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def read_timm(name: str, spec: ModelSpec, image_size: int) -> State:
    """The encoder of a pretrained timm model such as vit_base_patch16_224.mae, downloaded; WeightsError names it."""
    import timm  # imported here: only this choice needs all of its models

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # noqa: BLE001  # its many ways to download fail in as many ways
        raise WeightsError(
            f"timm:{name}: cannot be loaded ({_first_line(error)}); is the name one of timm's with weights, "
            "and can this machine reach them? If not, download the file elsewhere and name it by init: file:PATH"
        ) from None
    try:
        return adapt(model.state_dict(), spec, image_size)
    except WeightsError as error:
        raise WeightsError(f"timm:{name}: {error}") from None


def _load_pickle(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file of torch.save, without running anything in it; training arguments beside them are let pass."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner
    raise WeightsError(f"expected a mapping of names to tensors, found {type(content).__name__}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
