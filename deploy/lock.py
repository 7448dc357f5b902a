"""Writes requirements.lock: what the image installs, with hashes. Run by `make lock`.

The files are those that pip chooses on this machine, so it must be one like the image: Linux, x86-64, Python 3.11.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIKE_THE_IMAGE = ("Linux", "x86_64", "3.11")
HEADER = "# Of the image: raysight's dependencies as constraints.txt pins them. Written by deploy/lock.py.\n"


def main() -> None:
    """Asks pip for its choice, and writes it down."""
    machine = (platform.system(), platform.machine(), platform.python_version().rpartition(".")[0])
    if machine != LIKE_THE_IMAGE:
        sys.exit(f"deploy/lock.py: this machine is {' '.join(machine)}, the image {' '.join(LIKE_THE_IMAGE)}")
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--report", "-", "-c", str(ROOT / "constraints.txt"), str(ROOT)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    lines = [
        f"{item['metadata']['name']}=={item['metadata']['version']} --hash=sha256:{archive['hashes']['sha256']}\n"
        for item in report["install"]
        if (archive := item["download_info"].get("archive_info"))  # raysight itself is a folder
    ]
    (ROOT / "deploy" / "requirements.lock").write_text(HEADER + "".join(sorted(lines, key=str.lower)))


if __name__ == "__main__":
    main()
