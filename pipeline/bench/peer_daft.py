"""Daft's part of the comparison: a script for an interpreter that has Daft, and need not have raysight."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main(source: str, dest: str, resized: list[int], crop: list[int], values: int, mean: float, std: float) -> None:
    """Files to features, as Daft's guide to images does it; prints when the last was written."""
    import daft
    import numpy as np
    from daft import DataType, col
    from daft.functions import crop as crop_image
    from daft.functions import decode_image, download, resize

    embedding = DataType.fixed_size_list(DataType.float32(), values)
    answer = DataType.struct({"embedding": embedding, "seen": DataType.float64()})

    def take(images: Any) -> list[dict[str, Any]]:
        """The red channel of the first row, normalised."""
        now = time.monotonic()
        rows = [image[0, :values, 0].astype(np.float32) for image in images.to_pylist()]
        return [{"embedding": (row / 255 - mean) / std, "seen": now} for row in rows]

    model = daft.func.batch(return_dtype=answer)(take)
    pixels = decode_image(download(col("path")), mode="RGB")
    pixels = crop_image(resize(pixels, *resized), tuple(crop))
    frame = daft.from_glob_path(f"{source}/*.jpg").select(col("path").alias("uri"), model(pixels).alias("answer"))
    features = frame.select(
        col("uri"), col("answer").get("embedding").alias("embedding"), col("answer").get("seen").alias("seen")
    )
    features.write_parquet(dest)
    print(time.monotonic())


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
