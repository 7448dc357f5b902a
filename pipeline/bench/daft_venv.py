"""A virtual environment for Daft alone, made where there is none: its releases pin pyarrow below what raysight pins."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PACKAGES = ("daft==0.7.26", "numpy")


def daft_python(work: Path) -> str | None:
    """The interpreter, below ``work``; None where Daft cannot be installed, such as without a network."""
    folder = work / "daft"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
            install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *_PACKAGES]
            subprocess.run(install, check=True, capture_output=True)
        except subprocess.CalledProcessError:
            return None
        done.touch()
    return str(python)
