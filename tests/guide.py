"""The commands of deploy/README.md, each with the label that says what stands behind it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "deploy" / "README.md").read_text()
LABEL = re.compile(r"# (executed|validated|unverified here): (.+)")


def commands() -> list[tuple[str, str]]:
    """(label's line, command) of all shell blocks."""
    pairs = []
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        lines = block.strip().splitlines()
        assert len(lines) % 2 == 0, block
        pairs += list(zip(lines[::2], lines[1::2], strict=True))
    return pairs


def command(start: str, **replaced: str) -> list[str]:
    """The only command that begins so, for a shell: run as it stands there but for what is replaced.

    Args:
        start: how it begins.
        replaced: what else to say instead of ``here`` (127.0.0.1:8265) and ``there`` (https://embed.example.com).
    """
    (found,) = (command for _, command in commands() if command.startswith(start))
    for name, text in {"here": "127.0.0.1:8265", "there": "https://embed.example.com"}.items():
        found = found.replace(text, replaced.get(name, text))
    return ["bash", "-euo", "pipefail", "-c", found]
