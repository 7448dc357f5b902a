"""What is kept of one pass through a model: the embedding, the patch tokens, the likeliest classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, get_args

import torch

from pipeline.checkpoint import local_checkpoint
from pipeline.config import Feature
from pipeline.errors import UsageError
from pipeline.head import TOP, LinearHead, class_names, load_head
from pipeline.layout import Layout, check_patches, find_layout
from pipeline.schema import class_fields, embedding_field, patches_field

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.config import ModelConfig, StorageConfig

_STORED = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a model.

    Attributes:
        fields: the feature columns, in their order.
        layout: the shape of what the model gives.
        head: a classifier from a file; None where there is none, or the model's own is used.
        classes: how many the classifier tells apart; 0 without one.
        dtype: of stored embeddings.
        normalize: whether embeddings are scaled to an L2 norm of 1.
    """

    fields: tuple[pa.Field, ...]
    layout: Layout
    head: LinearHead | None
    classes: int
    dtype: torch.dtype
    normalize: bool

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class, where timm knows them; None otherwise."""
        return class_names(self.classes) if self.classes else None

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patch tokens; None without any, or where they form no grid."""
        return self.layout.grid if any(field.name == "patches" for field in self.fields) else None

    def to(self, device: torch.device) -> Self:
        """The same, on a device."""
        return self if self.head is None else replace(self, head=self.head.to(device))

    def compute(
        self, model: torch.nn.Module, features: torch.Tensor, embedding: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The (n, …) unpooled features and (n, dim) embeddings to the columns of ``fields``, as they are stored."""
        found: dict[str, torch.Tensor] = {}
        for field in self.fields:
            match field.name:
                case "embedding":
                    vectors = embedding.float()
                    if self.normalize:
                        vectors = torch.nn.functional.normalize(vectors, dim=1)
                    found["embedding"] = vectors.to(self.dtype)
                case "patches":
                    found["patches"] = self.layout.patch_tokens(features).to(torch.float16).contiguous()
                case "class_index":
                    logits = self._logits(model, features, embedding)
                    top = torch.topk(logits.float().softmax(dim=1) * 100, min(TOP, self.classes), dim=1)
                    found["class_index"] = top.indices.to(torch.int32)
                    found["class_probability"] = top.values
        return found

    def _logits(self, model: torch.nn.Module, features: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        if self.head is not None:
            return self.head(features, embedding)  # type: ignore[no-any-return]
        # Not the classifier over the embedding: some heads are more than that, such as those of distilled models.
        logits: torch.Tensor = model.forward_head(features)  # type: ignore[operator]
        return logits


def plan_outputs(model: torch.nn.Module, config: ModelConfig, size: tuple[int, int], storage: StorageConfig) -> Outputs:
    """The outputs that a configuration asks for.

    Args:
        model: with its own classifier where that is needed.
        config: what to compute.
        size: height and width of the input, in pixels.
        storage: how to reach a head file in a bucket.

    Raises:
        UsageError: the model cannot give them, or the head does not fit.
    """
    layout = find_layout(model, config.name, *size)
    fields: list[pa.Field] = []
    head: LinearHead | None = None
    classes = 0
    if "embedding" in config.features:
        fields.append(embedding_field(layout.embedding, config.dtype))
    if "patches" in config.features:
        check_patches(model, config.name, layout)
        fields.append(patches_field(*layout.patches))
    if "classes" in config.features:
        if config.head is not None:
            head = load_head(local_checkpoint(config.head, "--head", storage), config.name, layout)
        classes = head.linear.out_features if head is not None else int(getattr(model, "num_classes", 0))
        if classes == 0:
            raise UsageError(
                f"--features classes: {config.name} comes without a classifier; give --head FILE, a linear one"
                " (docs/commands.md says which forms), or take a model that has its own"
            )
        fields.extend(class_fields(min(TOP, classes)))
    return Outputs(tuple(fields), layout, head, classes, _STORED[config.dtype], config.normalize)


def check_outputs(config: ModelConfig) -> None:
    """Raises UsageError for outputs that there are not, or that contradict each other; loads nothing."""
    choices = get_args(Feature)
    if not config.features or set(config.features) - set(choices):
        raise UsageError(f"--features {','.join(config.features)}: give one or more of {', '.join(choices)}")
    if "embedding" not in config.features and (config.normalize or config.dtype != "float32"):
        raise UsageError("--normalize and --dtype are of embeddings; ask for --features embedding as well")
    if "classes" not in config.features and config.head is not None:
        raise UsageError("--head is for classes; ask for them with --features classes")
