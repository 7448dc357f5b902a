"""raysight's batch half: object storage in, a Parquet dataset of features out."""

__version__ = "0.1.0"
