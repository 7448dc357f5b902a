"""What a run goes by, as frozen typed objects; every bound has a name and a default here.

The endpoint's own section, and all sections together, are in ``pipeline.sections``.

A field of a section is a key of the TOML file, an environment variable, and a flag where a command offers it:
``pipeline.settings`` derives them from the type hint and from the field's metadata, which may hold ``minimum``,
``maximum``, ``above`` (an exclusive minimum) and ``path`` (a file; relative to the TOML file that names it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEFAULT_MODEL = "vit_small_patch14_dinov2.lvd142m"

MIB = 1 << 20

Preset = Literal["timm", "dinov2-224"]
Implementation = Literal["fast", "scaled", "reference"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Feature = Literal["embedding", "patches", "classes"]
Dtype = Literal["float32", "float16"]
Decode = Literal["actor", "tasks"]
LogFormat = Literal["text", "json"]

FILE = {"path": True}
NATURAL = {"minimum": 0}
POSITIVE = {"minimum": 1}
SECONDS = {"above": 0}
RATE = {"minimum": 0, "maximum": 1}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What to compute. Batch and endpoint read the same section.

    Attributes:
        name: a timm model name, with its pretrained tag if it has one.
        weights: ``pretrained`` (the hub), a checkpoint file (a path, or ``s3://``), or ``random:SEED``.
        head: a file with a linear classifier for ``classes``, of a model that comes without one (a path, or ``s3://``).
        image_size: side of the model's input in pixels; None is the preset's.
        preset: whose preprocessing: the model's own data config, or Meta's DINOv2 evaluation transform.
        implementation: ``reference`` is timm's transform verbatim, ``fast`` the same numbers sooner,
            ``scaled`` nearly the same, sooner still where JPEGs are large (docs/decisions/0041).
        precision: what the forward computes in; ``auto`` looks at the device.
        features: what to keep of the one pass: ``embedding``, ``patches``, ``classes``.
        normalize: scale each embedding to an L2 norm of 1.
        dtype: what embeddings are stored in; patches are always float16.
        compile: put the model through OpenVINO on a CPU, where ``raysight[openvino]`` is installed, and through
            ``torch.compile`` elsewhere, which takes a minute or more at the start.
    """

    name: str = DEFAULT_MODEL
    weights: str = field(default="pretrained", metadata=FILE)
    head: str | None = field(default=None, metadata=FILE)
    image_size: int | None = field(default=None, metadata=POSITIVE)
    preset: Preset = "timm"
    implementation: Implementation = "fast"
    precision: Precision = "auto"
    features: tuple[Feature, ...] = ("embedding",)
    normalize: bool = False
    dtype: Dtype = "float32"
    compile: bool = False


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one image may cost before it is rejected.

    Attributes:
        max_bytes: encoded size; checked against the listing before a byte is fetched, and again afterwards.
        max_pixels: width times height, read from the header before decoding. The default is Pillow's own bound
            (a quarter gigabyte of RGB divided by three).
    """

    max_bytes: int = field(default=64 * MIB, metadata=POSITIVE)
    max_pixels: int = field(default=89_478_485, metadata=POSITIVE)


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """How object stores are talked to.

    Attributes:
        anonymous: send unsigned requests although credentials are at hand (without any, requests are unsigned anyway).
        connect_timeout_s: seconds to open a connection.
        timeout_s: seconds for one request.
        max_retries: tries after the first, with exponential backoff and jitter, for 429, 5xx and dropped connections;
            twelve bridge about three quarters of a minute.
        retry_timeout_s: seconds after which no further try is made.
        max_in_flight: GETs under way at once in one read task; fewer while a bucket asks to slow down.
    """

    anonymous: bool = False
    connect_timeout_s: float = field(default=5.0, metadata=SECONDS)
    timeout_s: float = field(default=60.0, metadata=SECONDS)
    max_retries: int = field(default=12, metadata=NATURAL)
    retry_timeout_s: float = field(default=120.0, metadata=SECONDS)
    max_in_flight: int = field(default=64, metadata=POSITIVE)


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """What of the sources is taken, and what goes with it.

    Attributes:
        uri_column: of the tables of URIs; None is ``uri``, else the only column, else ``url``, ``path`` or ``image``.
        keep: columns of the tables that are carried into features and rejects.
        include: globs of what to take; none is what has an image's suffix (of a table: every row).
        exclude: globs of what to leave out; stronger than ``include``.
    """

    uri_column: str | None = None
    keep: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobConfig:
    """How the batch job runs. None stands for "chosen from the device, the model or the cluster".

    Attributes:
        chunk_rows: images in a chunk, the unit of work, retry and loss; None is 1024 on a GPU and 64 on a CPU.
        chunk_bytes: encoded bytes in a chunk at most.
        chunk_pixel_bytes: bytes of pixels in a chunk at most, where tasks decode.
        chunk_feature_bytes: feature bytes in a chunk at most; an actor has two chunks in hand, and takes up to three
            times the memory of each.
        shard_rows: images in a shard at most.
        shard_chunks: chunks in a shard at most, which are the row groups of its files.
        shard_bytes: feature bytes in a shard; wide rows make shards of fewer rows.
        batch_size: images of one forward; None is 2 on a CPU, and on a GPU what each actor finds to be fast.
        max_batch_size: images of one forward at most, where the actor finds out.
        decode: who decodes: ``actor``, on threads beside the device; or ``tasks``, on any CPU of the cluster, and
            pixels cross the object store.
        decode_threads: threads that decode, in each actor; None is the CPUs of the actor.
        decode_tasks: tasks that decode at a time, where tasks do; None is the CPUs that the actors leave.
        min_actors: actors from the start.
        max_actors: actors at most; None is what fits on the nodes there are.
        gpus_per_actor: GPUs (or a fraction) of each actor; None is 1 where the cluster has GPUs, else 0.
        cpus_per_actor: CPUs of each actor, its reads included; None is the node's CPUs shared out.
        actor_memory: bytes of memory that Ray sets aside for each actor; None is 1 GiB, what the chunks take, and what
            a larger model than the default one does.
        read_tasks_per_actor: read tasks under way for each actor.
        task_retries: how often a chunk is tried again after its worker died.
        poison_attempts: after so many dead workers a chunk is decoded image by image in a subprocess.
        decode_timeout_s: seconds for one image in that subprocess.
        wave_chunks: chunks for each actor that Ray Data is given at a time; the driver keeps some 9 KiB for each of
            them until the last is done, and then new actors start.
        max_passes: how often the driver goes over what is still missing before it gives up.
        grace_s: seconds that chunks in flight have to commit after SIGINT or SIGTERM.
        lease_ttl_s: seconds without a heartbeat after which a job counts as dead.
        max_reject_rate: rejected fraction of all rows above which the job ends with exit code 3.
        limit: only the first so many objects of the listing; None is all.
        address: of a running Ray cluster; None is $RAY_ADDRESS, or a Ray started on this machine.
        prune: rows whose object is gone from the source leave the dataset.
        listing_memory: bytes of memory for comparing a listing with the dataset; more is spilled to the temporary
            folder (``TMPDIR``).
        log_format: of what the job says on stderr: lines for a person, or ``json``, an object a line.
    """

    chunk_rows: int | None = field(default=None, metadata=POSITIVE)
    chunk_bytes: int = field(default=64 * MIB, metadata=POSITIVE)
    chunk_pixel_bytes: int = field(default=256 * MIB, metadata=POSITIVE)
    chunk_feature_bytes: int = field(default=64 * MIB, metadata=POSITIVE)
    shard_rows: int = field(default=65_536, metadata=POSITIVE)
    shard_chunks: int = field(default=1024, metadata=POSITIVE)
    shard_bytes: int = field(default=256 * MIB, metadata=POSITIVE)
    batch_size: int | None = field(default=None, metadata=POSITIVE)
    max_batch_size: int = field(default=128, metadata=POSITIVE)
    decode: Decode = "actor"
    decode_threads: int | None = field(default=None, metadata=POSITIVE)
    decode_tasks: int | None = field(default=None, metadata=POSITIVE)
    min_actors: int = field(default=1, metadata=POSITIVE)
    max_actors: int | None = field(default=None, metadata=POSITIVE)
    gpus_per_actor: float | None = field(default=None, metadata=NATURAL)
    cpus_per_actor: float | None = field(default=None, metadata=NATURAL)
    actor_memory: int | None = field(default=None, metadata=POSITIVE)
    read_tasks_per_actor: int = field(default=2, metadata=POSITIVE)
    task_retries: int = field(default=6, metadata=NATURAL)
    poison_attempts: int = field(default=3, metadata=POSITIVE)
    decode_timeout_s: float = field(default=60.0, metadata=SECONDS)
    wave_chunks: int = field(default=4096, metadata=POSITIVE)
    max_passes: int = field(default=3, metadata=POSITIVE)
    grace_s: float = field(default=60.0, metadata=NATURAL)
    lease_ttl_s: float = field(default=30.0, metadata=SECONDS)
    max_reject_rate: float = field(default=0.1, metadata=RATE)
    limit: int | None = field(default=None, metadata=POSITIVE)
    address: str | None = None
    prune: bool = False
    listing_memory: int = field(default=1024 * MIB, metadata=POSITIVE)
    log_format: LogFormat = "text"


@dataclass(frozen=True, slots=True)
class Config:
    """One run: what to compute, from where, to where, and how.

    Attributes:
        sources: each a folder, a prefix, an image or a table of URIs; see ``pipeline.source``.
        dest: the dataset: a folder or ``s3://bucket/prefix``.
    """

    sources: tuple[str, ...]
    dest: str
    model: ModelConfig = field(default_factory=ModelConfig)
    limits: ImageLimits = field(default_factory=ImageLimits)
    storage: StorageConfig = field(default_factory=StorageConfig)
    job: JobConfig = field(default_factory=JobConfig)
    listing: SourceConfig = field(default_factory=SourceConfig)
