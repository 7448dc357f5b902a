"""``python -m pipeline.bench_gpu``: what a card does with a model, and what is left of it when JPEGs come in. No Ray.

Prints tables as they come; ``--output FILE`` keeps every figure as JSON. ``--device cpu`` goes through all of it on any
machine.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch

from pipeline.batching import static_sizes
from pipeline.bench.device import Card, forward_rates, gemm_peak, model_flops, reference_rates
from pipeline.bench.jpegs import jpeg_rates, least_cosine, make_jpegs
from pipeline.bench.table import render
from pipeline.config import DEFAULT_MODEL, ImageLimits, ModelConfig
from pipeline.extractor import load_extractor, pick_device
from pipeline.tolerance import tolerance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.extractor import Extractor

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_COMPARED = 3
_THREADS = (1, 2, 4, 8, 12, 16, 24, 32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes. Exits 0 whatever the figures are."""
    options = _options(arguments)
    card = Card(torch.device(options.device), options.seconds)
    config = ModelConfig(options.model, options.weights, precision=options.precision, image_size=options.image_size)
    extractor = load_extractor(config, ImageLimits(), card.device)
    figures = _limits(card, extractor, options.gemm)

    def record(**more: Any) -> None:
        figures.update(more)
        if options.output is not None:  # now: a loan of a card may end before the next figure
            options.output.write_text(json.dumps(figures, indent=1))

    largest = max(options.sizes)
    rates = {"raysight": forward_rates(card, extractor, options.sizes)}
    record(images_per_second=rates)
    rates["timm, amp"] = reference_rates(card, extractor, options.model, options.sizes)
    record()
    _print_rates(rates, figures)

    jpegs = make_jpegs(options.images)
    reference = load_extractor(replace(config, precision="fp32"), ImageLimits(), torch.device("cpu"))
    record(cosine=least_cosine(extractor, reference, jpegs[:_COMPARED]))
    asked = tolerance("reference", figures["precision"]).cosine  # both prepare in the same way
    _say(f"\nleast cosine to fp32 on the CPU: {figures['cosine']:.6f} (asked: at least {asked:g})")

    size = options.batch_size or extractor.settle(None, min(largest, max(rates["raysight"])))
    extractor.settle(size, size)
    record(batch_size=size, **_from_jpegs(card, extractor, jpegs, size, options))
    if options.compile:  # last: it takes minutes
        extractor, seconds = _compiled(card, config, size)
        rates["raysight, compiled"] = forward_rates(card, extractor, static_sizes(size))
        record(compile_seconds=seconds)
        _print_rates({"raysight, compiled": rates["raysight, compiled"]}, figures)
        found = _from_jpegs(card, extractor, jpegs, size, options)
        record(compiled=found | {"cosine": least_cosine(extractor, reference, jpegs[:_COMPARED])})
        _say(f"\nleast cosine to fp32 on the CPU, compiled: {figures['compiled']['cosine']:.6f}")
    return 0


def _print_rates(rates: Mapping[str, Mapping[int, float]], figures: Mapping[str, Any]) -> None:
    fraction = figures["gflop_an_image"] / figures["gemm_tflops"] / 1e3
    tried = sorted(set().union(*rates.values()))
    _say("\nForward alone, pixels on the device: images/s (fraction of the GEMM peak)\n")
    _say(
        render(
            ["batch", *rates], [[str(n), *(_cell(found.get(n), fraction) for found in rates.values())] for n in tried]
        )
    )


def _from_jpegs(
    card: Card, extractor: Extractor, jpegs: Sequence[bytes], size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """``bare``, the forward alone at this size, and ``jpegs``, as :func:`pipeline.bench.jpegs.jpeg_rates`."""
    bare = forward_rates(card, extractor, [size])[size]
    found = jpeg_rates(extractor, jpegs, size, options.threads, options.seconds)
    _say(f"\nFrom JPEGs of {len(jpegs[0]) / 1000:.0f} kB, batches of {size}; the forward alone: {bare:,.1f} images/s\n")
    rows = [
        [f"{item['threads']}", f"{item['rate']:,.1f}", f"{item['rate'] / bare:.2f}", f"{item['busy']:.0%}"]
        for item in found
    ]
    _say(render(["decode threads", "images/s", "of the forward alone", "device held"], rows))
    return {"bare": bare, "jpegs": found}


def _limits(card: Card, extractor: Extractor, side: int) -> dict[str, Any]:
    """What is measured, the peak of the card, and what the model asks for."""
    fingerprint = extractor.fingerprint
    figures = {
        "card": card.name,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "model": fingerprint.model,
        "precision": fingerprint.precision,
        "transform": fingerprint.transform,
        "gemm_tflops": gemm_peak(card, fingerprint.precision, side),
        "gflop_an_image": model_flops(extractor),
    }
    for name, value in figures.items():
        _say(f"{name:<16}{value:.4g}" if isinstance(value, float) else f"{name:<16}{value}")
    return figures


def _compiled(card: Card, config: ModelConfig, largest: int) -> tuple[Extractor, float]:
    """The compiled extractor, and the seconds that it took."""
    extractor = load_extractor(replace(config, compile=True), ImageLimits(), card.device)
    begun = time.perf_counter()
    extractor.settle(largest, largest)
    seconds = time.perf_counter() - begun
    _say(f"\ncompiled in {seconds:.1f} s for batches of {', '.join(map(str, static_sizes(largest)))}")
    return extractor, seconds


def _cell(rate: float | None, fraction: float) -> str:
    return "" if rate is None else f"{rate:,.1f} ({rate * fraction:.2f})"


def _say(text: str) -> None:
    print(text, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.bench_gpu", description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, help="a timm model (default: %(default)s)")
    add("--weights", default="random:0", help="as extract's (default: %(default)s)")
    add("--precision", default="auto", help="as extract's (default: %(default)s)")
    add("--image-size", type=int, help="side of the input in pixels (default: the model's own)")
    add("--device", default=str(pick_device()), help="cuda or cpu (default: %(default)s)")
    add("--sizes", type=int, nargs="+", default=_SIZES, metavar="N", help="batches that are tried")
    add("--threads", type=int, nargs="+", default=_THREADS, metavar="N", help="decode threads that are tried")
    add("--batch-size", type=int, help="for JPEGs (default: found out)")
    add("--images", type=Path, metavar="FOLDER", help="JPEGs to decode (default: made, 500×375)")
    add("--gemm", type=int, default=8192, metavar="N", help="side of the matrices for the peak (default: %(default)s)")
    add("--seconds", type=float, default=3.0, help="for each figure at least (default: %(default)s)")
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="measure the compiled model too")
    add("--output", type=Path, metavar="FILE", help="all figures, as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
