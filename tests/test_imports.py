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
    ("config", "errors"),
    ("keys",),
    ("settings", "options", "toml"),
    ("schema", "store", "storage", "local", "s3", "cloud", "web", "located", "columns"),
    ("deviceerrors", "compiling", "decode", "checkpoint", "model", "layout", "manifest", "table"),
    ("head", "batching"),
    ("outputs", "device"),
    ("origin", "read"),
    ("chunkrow", "source", "extractor", "commit", "seal"),
    ("streams",),
    ("actor",),
    ("terms", "run", "worker", "cluster"),
    ("dataflow",),
    ("running",),
    ("rayworkers",),
    ("job",),
    ("cli", "show"),
)
"""Modules of ``pipeline`` from the bottom to the top; what is not named here may stand anywhere but in a circle."""

RAY = (
    "pipeline.cluster",
    "pipeline.dataflow",
    "pipeline.running",
    "pipeline.rayworkers",
    "pipeline.worker",
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


def test_inside_pipeline_imports_go_down_the_ladder_also_by_detours(graph: dict[str, set[str]]) -> None:
    rungs = {f"pipeline.{name}": rung for rung, names in enumerate(LADDER) for name in names}
    assert rungs.keys() <= graph.keys()
    upwards = [
        f"{name} → {other}"
        for name, rung in rungs.items()
        for other in reachable(graph, name)
        if rungs.get(other, -1) > rung
    ]
    assert upwards == []


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


def test_of_serve_the_deployment_alone_imports_ray() -> None:
    found = {
        name
        for name, path in files().items()
        if name.startswith("serve") and any(module.split(".")[0] == "ray" for module in imports(path))
    }
    assert found == {"serve.deployment"}


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
