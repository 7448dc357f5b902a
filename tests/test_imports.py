"""The house stands on its imports: one direction, no circles, and ray only where it belongs."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

LADDER = (
    # words
    ("config", "errors", "cut", "fingerprint", "footer", "glob", "gpus", "interrupt", "redact", "seen", "tolerance"),
    ("apart", "memory", "sections"),
    ("keys",),
    ("options", "settings", "toml"),
    # shapes and stores
    ("chunk_result", "pieces", "schema", "store", "columns", "counting"),
    ("atomic", "bucket_errors", "dataset_format", "window", "judgement", "local_errors", "staged"),
    ("obstore_reads", "s3_errors", "s3_clients", "walk"),
    ("cloud", "local", "s3_reader", "s3", "web"),
    ("storage",),
    ("located",),
    # the dataset
    ("commit", "dataset", "lease", "manifest"),
    ("diff", "generation", "plan", "seal"),
    ("retire", "sync"),
    ("retry",),
    # images and models
    ("checkpoint", "compiling", "decode", "deviceerrors", "isolate", "layout", "prepared", "resize"),
    ("batching", "model", "openvino_model", "preprocess"),
    ("chunkrow", "device", "head", "precision"),
    ("outputs",),
    ("extractor",),
    ("identity",),
    # sources
    ("origin", "refused", "table"),
    ("read", "source_table"),
    ("lister",),
    ("source",),
    # work without ray
    ("decoding", "progress", "runlog", "streams", "terms"),
    ("chunk_work",),
    ("actor", "logs", "metrics"),
    ("run",),
    ("report_text",),
    ("report", "report_page"),
    ("estimate", "sample", "shard_inspection"),
    ("inspection",),
    ("embed", "verify"),
    # work with ray
    ("budget", "cluster", "rayerrors", "raymetrics", "raystats", "readshare"),
    ("finishing", "preflight", "worker"),
    ("dataflow",),
    ("running",),
    ("rayworkers",),
    # commands
    ("renewal",),
    ("dryrun", "embed_command", "job"),
    ("cli", "show"),
)
"""Modules of ``pipeline`` from the bottom to the top."""

SERVE_LADDER = (
    ("batcher", "errors", "loading", "metrics", "page", "schemas"),
    ("auth", "bodies", "ingress", "limits", "outputs"),
    ("answers", "engine"),
    ("handlers",),
    ("doors",),
    ("api",),
    ("deployment",),
    ("app", "command"),
    ("cli",),
)
"""Modules of ``serve``, likewise."""

BENCH = ("pipeline.bench", "serve.bench")
"""Measurements stand above both ladders."""

LADDERS = {"pipeline": LADDER, "serve": SERVE_LADDER}

RAY = (
    "pipeline.cluster",
    "pipeline.dataflow",
    "pipeline.running",
    "pipeline.rayworkers",
    "pipeline.worker",
    "pipeline.raymetrics",
    "pipeline.raystats",
    "pipeline.bench",
)
"""What may import ray: the job's side of it, its workers' side, and measurements."""


def files() -> dict[str, Path]:
    """Module name → file."""
    paths = [path for package in ("pipeline", "serve") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports that can happen, also those inside functions; not those for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (found for branch in child.orelse for found in statements(ast.Module([branch], [])))
        else:
            yield from statements(child)


def imports(path: Path) -> set[str]:
    """Names of what a file imports; of ``from package import name`` both readings."""
    found: set[str] = set()
    for statement in statements(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            found.update(alias.name for alias in statement.names)
        else:
            assert statement.level == 0, f"{path}: write absolute imports"
            assert statement.module is not None
            found.add(statement.module)
            found.update(f"{statement.module}.{alias.name}" for alias in statement.names)
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module → the modules of this project that it imports. A package's own ``__init__`` counts for nothing."""
    modules = files()
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    return {name: (imports(path) & modules.keys()) - packages for name, path in modules.items()}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    pending = [start]
    while pending:
        for name in graph[pending.pop()] - seen:
            seen.add(name)
            pending.append(name)
    return seen


def test_there_are_no_circles(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' ← '.join(error.args[1])}")


@pytest.mark.parametrize("package", LADDERS)
def test_every_module_stands_on_its_ladder_once(graph: dict[str, set[str]], package: str) -> None:
    modules = {name for name in graph if name.startswith(f"{package}.") and not name.startswith(BENCH)}
    assert sorted(f"{package}.{name}" for names in LADDERS[package] for name in names) == sorted(modules)


@pytest.mark.parametrize("package", LADDERS)
def test_imports_go_down_the_ladder_also_by_detours(graph: dict[str, set[str]], package: str) -> None:
    rungs = {f"{package}.{name}": rung for rung, names in enumerate(LADDERS[package]) for name in names}
    upwards = [
        f"{name} → {other}"
        for name, rung in rungs.items()
        for other in sorted(reachable(graph, name))
        if rungs.get(other, -1) > rung
    ]
    assert upwards == []


def test_measurements_are_imported_by_the_root_command_alone(graph: dict[str, set[str]]) -> None:
    users = {name for name, used in graph.items() if any(module.startswith(BENCH) for module in used)}
    assert {name for name in users if not name.startswith(BENCH)} == {"serve.cli"}


def test_pipeline_knows_nothing_of_serve(graph: dict[str, set[str]]) -> None:
    assert {
        name for name in graph if name.startswith("pipeline") and any(m.startswith("serve") for m in graph[name])
    } == set()


def test_ray_is_imported_where_it_belongs_alone() -> None:
    found = {
        name
        for name, path in files().items()
        if name.startswith("pipeline") and any(module.split(".")[0] == "ray" for module in imports(path))
    }
    assert found
    assert [name for name in sorted(found) if not name.startswith(RAY)] == []


def test_of_serve_the_deployment_and_measurements_alone_import_ray() -> None:
    found = {
        name
        for name, path in files().items()
        if name.startswith("serve") and any(module.split(".")[0] == "ray" for module in imports(path))
    }
    assert {name for name in found if not name.startswith(BENCH)} == {"serve.deployment"}


def test_serve_never_rebinds_rays_serve() -> None:
    """``import serve.x`` would bind the name ``serve``, which means ray's in this package."""
    wrong = [
        f"{name}: import {alias.name}"
        for name, path in files().items()
        if name.startswith("serve")
        for statement in ast.walk(ast.parse(path.read_text()))
        if isinstance(statement, ast.Import)
        for alias in statement.names
        if alias.name.split(".")[0] == "serve"
    ]
    assert wrong == []


def test_the_walk_sees_imports_in_functions_and_leaves_those_of_type_checkers_out(tmp_path: Path) -> None:
    source = """
import a.b
from c import d
if TYPE_CHECKING:
    import hidden
else:
    import seen
def function():
    with open("x"):
        from e.f import g
"""
    (tmp_path / "x.py").write_text(source)
    assert imports(tmp_path / "x.py") == {"a.b", "c", "c.d", "seen", "e.f", "e.f.g"}
