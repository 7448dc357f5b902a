"""What decides the numbers: two datasets, or a dataset and an endpoint, agree when their fingerprints do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that decides a feature's value, except the device (docs/tolerances.md says how far devices differ).

    Attributes:
        model: timm's name.
        weights: SHA-256 of the weights, the classifier's apart.
        preset: name of the preprocessing preset.
        transform: the preset resolved for this model, as ``HxW crop_pct crop_mode interpolation mean std``.
        implementation: ``fast``, ``scaled`` or ``reference``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        outputs: name of each feature column with its type.
        head: SHA-256 of the weights of the classifier, the model's own or that of a file; empty without classes.
        normalize: whether embeddings have an L2 norm of 1.
    """

    model: str
    weights: str
    preset: str
    transform: str
    implementation: str
    precision: str
    outputs: tuple[str, ...]
    head: str = ""
    normalize: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "outputs": list(self.outputs)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Fingerprint:
        """The inverse of :meth:`to_dict`. Raises TypeError or KeyError for other shapes."""
        return cls(**{**values, "outputs": tuple(values["outputs"])})

    def restricted(self, outputs: tuple[str, ...]) -> Fingerprint:
        """That of some of the outputs: the same whatever else was computed beside them."""
        names = {output.partition(":")[0] for output in outputs}
        return replace(
            self,
            outputs=outputs,
            head=self.head if "class_index" in names else "",
            normalize=self.normalize and "embedding" in names,
        )

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def differences(self, other: Fingerprint) -> list[str]:
        """One line for each field that differs, this one's value first."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{name}: {mine[name]} → {theirs[name]}" for name in mine if mine[name] != theirs[name]]
