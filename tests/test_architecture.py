"""Arrows point down: which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flairhub"

# Higher number = higher floor. Rooms on one floor do not know each other.
FLOORS = {
    "accessors": 0,
    "errors": 0,
    "progress": 0,
    "shown": 0,
    "validity": 0,
    "version": 0,
    "jobs": 0,
    "not_finite": 0,
    "tiff": 0,
    "modalities": 1,
    "tasks": 1,
    "baselines": 2,
    "timeseries": 2,
    "written_dates": 2,
    "confusion": 2,
    "geo": 2,
    "class_raster": 3,
    "prepare": 3,
    "config": 4,
    "cube": 5,
    "zones": 6,
    "data": 7,
    "models": 7,
    "ingest": 7,
    "training": 8,
    "inference": 8,
    "report": 8,
    "demo": 9,
    "maps": 9,
    "cli": 10,
    "__main__": 11,
}
GROUND = {"errors", "progress", "shown", "version"}
"""What every room may import, those on floor 0 too."""
TORCH_FREE = {room for room, floor in FLOORS.items() if floor < FLOORS["data"]} | {"ingest"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            if module == "flairhub":
                found += [(node.lineno, f"flairhub.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, module))
    return found


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    for line, module in imports_of(path):
        parts = module.split(".")
        if parts[0] == "torch" or parts[0] == "lightning":
            assert room not in TORCH_FREE, f"{path}:{line}: torch below data/"
        if parts[0] != "flairhub" or len(parts) == 1 or parts[1] == room:
            continue
        assert parts[1] in FLOORS, f"{path}:{line}: unknown room {parts[1]}"
        below = parts[1] in GROUND and room not in GROUND
        assert below or FLOORS[parts[1]] < FLOORS[room], f"{path}:{line}: {room} must not import {parts[1]}"


def names_of_face(room: str) -> set[str]:
    """What a room's `__init__.py` lists in `__all__`."""
    for node in ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_other_rooms_are_imported_by_their_faces() -> None:
    """What a room offers stands in its `__init__.py`: its files move without a change elsewhere. No exceptions.

    A deep import would be no lighter: it runs the room's `__init__.py` too.
    """
    faces = {path.parent.name: names_of_face(path.parent.name) for path in PACKAGE.glob("*/__init__.py")}
    past = []
    for path in [*SOURCES, PACKAGE / "__init__.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                parts = name.split(".")
                if parts[0] != "flairhub" or len(parts) < 3 or parts[1] not in faces or parts[1] == room_of(path):
                    continue
                if len(parts) > 3 or parts[2] not in faces[parts[1]]:
                    past.append((str(path.relative_to(PACKAGE)), name))
    assert past == []


def files_imported_by(path: Path) -> set[Path]:
    """Files of the package that a file names in an import, at whatever level and also for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            # The longest part of a name that is a file: what follows is something in it.
            while parts[0] == "flairhub" and len(parts) > 1:
                place = PACKAGE.joinpath(*parts[1:])
                file = next((one for one in (place.with_suffix(".py"), place / "__init__.py") if one.is_file()), None)
                if file is not None:
                    found.add(file)
                    break
                parts.pop()
    return found - {path}


def circles(arrows: dict[Path, set[Path]]) -> list[list[Path]]:
    """Groups of files of which each leads to each other."""
    reached: dict[Path, set[Path]] = {}
    for start in arrows:
        seen: set[Path] = set()
        waiting = [start]
        while waiting:
            for path in arrows.get(waiting.pop(), set()) - seen:
                seen.add(path)
                waiting.append(path)
        reached[start] = seen
    groups = {frozenset({other for other in seen if path in reached[other]}) for path, seen in reached.items()}
    return sorted(sorted(group) for group in groups if group)


def test_no_file_leads_back_to_itself() -> None:
    """No two files import each other, not even inside a function or for types; nor in a longer circle."""
    found = circles({path: files_imported_by(path) for path in SOURCES})
    named = [[str(path.relative_to(PACKAGE)) for path in group] for group in found]
    assert named == []


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in SOURCES} == set(FLOORS)


def test_files_stay_small() -> None:
    sizes = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: size for name, size in sizes.items() if size > 400} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_cli_prints_and_exits(path: Path) -> None:
    if room_of(path) == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"print", "sys.exit", "exit", "quit", "os._exit"}, f"{path}:{node.lineno}: {name}"


def test_no_modality_is_special() -> None:
    """Facts are rows of a table: no comparison with a modality name in the code."""
    from flairhub.modalities import MODALITIES

    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and room_of(path) != "demo":
                constants = [n.value for n in [node.left, *node.comparators] if isinstance(n, ast.Constant)]
                assert not set(map(str, constants)) & set(MODALITIES), f"{path}:{node.lineno}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split("\n")[-2].split())


def test_import_is_light() -> None:
    heavy = {"torch", "dask", "xarray", "zarr", "rasterio", "pandas", "lightning", "matplotlib", "pydantic"}
    assert not heavy & loaded_after("import flairhub")


def test_help_is_light() -> None:
    heavy = {"torch", "dask", "xarray", "zarr", "rasterio", "pandas", "lightning", "matplotlib"}
    call = "import flairhub.cli as c; c.cli.main(['--help'], standalone_mode=False)"
    assert not heavy & loaded_after(call)


@pytest.mark.parametrize("room", ["flairhub.cube", "flairhub.ingest", "flairhub.config"])
def test_no_torch_below_data(room: str) -> None:
    assert "torch" not in loaded_after(f"import {room}")


def test_public_names_resolve() -> None:
    import flairhub

    for name in flairhub.__all__:
        assert getattr(flairhub, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flairhub.nothing
