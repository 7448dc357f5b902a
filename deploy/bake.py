"""Saves a timm model's pretrained weights as a checkpoint file: ``python bake.py NAME FILE.safetensors``."""

from __future__ import annotations

import sys

import timm
from safetensors.torch import save_file


def bake(name: str, path: str) -> None:
    """Loads from the hub, and writes what ``--weights FILE`` reads."""
    state = timm.create_model(name, pretrained=True).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, path)


if __name__ == "__main__":
    bake(*sys.argv[1:])
