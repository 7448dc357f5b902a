"""All that can be set: the sections of a run, and the endpoint's beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config import (
    FILE,
    MIB,
    NATURAL,
    POSITIVE,
    SECONDS,
    ImageLimits,
    JobConfig,
    ModelConfig,
    SourceConfig,
    StorageConfig,
)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """How the endpoint runs. None stands for "chosen from the device or the machine".

    Every bound holds for one replica, and inside it: what stands before it (a proxy, a client's header) cannot lift it.

    Attributes:
        host: address that is listened on; any but a loopback one needs ``api_keys``.
        port: TCP port.
        api_keys: path of a file with one SHA-256 (hex) of an API key a line; None asks for no key.
        max_body_bytes: of one request; larger ones are answered with 413 as they arrive.
        max_images: of one request.
        max_megapixels_in_flight: decoded pixels in memory at once; images wait for their share.
        max_queue: images that are waited for at once; more are refused with 429. Fewer are let in where the device is
            so slow that they could not be answered in time.
        request_timeout_s: seconds from a request's first byte to its answer.
        batch_size: images of one forward at most; None is 64 on a GPU and 2 on a CPU.
        prepare_threads: threads that decode, in each replica; None is the replica's CPUs.
        min_replicas: replicas from the start.
        max_replicas: replicas at most; more than ``min_replicas`` come and go with the load.
        gpus_per_replica: GPUs, or a fraction of one; None is 1 where the cluster has GPUs, else 0.
        cpus_per_replica: CPUs of each replica; None is the node's, shared out to ``max_replicas``.
        grace_s: seconds that requests in flight have to finish after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = field(default=8000, metadata={"minimum": 1, "maximum": 65_535})
    api_keys: str | None = field(default=None, metadata=FILE)
    max_body_bytes: int = field(default=32 * MIB, metadata=POSITIVE)
    max_images: int = field(default=64, metadata=POSITIVE)
    max_megapixels_in_flight: float = field(default=256.0, metadata=SECONDS)
    max_queue: int = field(default=256, metadata=POSITIVE)
    request_timeout_s: float = field(default=30.0, metadata=SECONDS)
    batch_size: int | None = field(default=None, metadata=POSITIVE)
    prepare_threads: int | None = field(default=None, metadata=POSITIVE)
    min_replicas: int = field(default=1, metadata=POSITIVE)
    max_replicas: int = field(default=1, metadata=POSITIVE)
    gpus_per_replica: float | None = field(default=None, metadata=NATURAL)
    cpus_per_replica: float | None = field(default=None, metadata=NATURAL)
    grace_s: float = field(default=60.0, metadata=NATURAL)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the TOML file, the environment and the flags settle; each field is a section of the file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    job: JobConfig = field(default_factory=JobConfig)
    limits: ImageLimits = field(default_factory=ImageLimits)
    storage: StorageConfig = field(default_factory=StorageConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
