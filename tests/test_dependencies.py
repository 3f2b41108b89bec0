"""What the package imports is declared in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import distributions, packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from divff_nerfstudio.faults import LEFT_OUT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGES = {"cv2": "opencv-python-headless", "google": "protobuf"}
"""Packages of modules that several packages bring."""
OPTIONAL = {"gdown", "triton"}
"""Imported where they are there; otherwise a sentence says how to install them."""


def imported(folder: Path) -> dict[str, set[str]]:
    """First parts of the modules that files import, and the files."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(str(path.relative_to(ROOT)))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines}


def brought() -> dict[str, set[str]]:
    """The packages that bring a module; Python 3.10 knows only those that list their modules."""
    found = {module: set(packages) for module, packages in packages_distributions().items()}
    for package in distributions():
        for path in package.files or ():
            if len(path.parts) == 2 and path.name == "__init__.py":
                found.setdefault(path.parts[0], set()).add(package.metadata["Name"])
    return found


@pytest.mark.parametrize(
    ("folder", "extras"), [("divff_nerfstudio", ("convert", "features")), ("scripts", ("dev", "browser", "features"))]
)
def test_what_is_imported_is_declared(folder: str, extras: tuple[str, ...]):
    own = {path.stem for path in (ROOT / "scripts").glob("*.py")} | {"divff_nerfstudio"}
    bring, known = brought(), declared(*extras)
    missing = {}
    for module, files in imported(ROOT / folder).items():
        if module in own | OPTIONAL or module in sys.stdlib_module_names:
            continue
        packages = {PACKAGES[module]} if module in PACKAGES else {*bring.get(module, ()), module}
        if not {normal(package) for package in packages} & known:
            missing[module] = sorted(files)
    assert missing == {}


def test_of_nerfstudio_only_what_can_be_asked_for_in_a_sentence_is_left_out():
    """What is installed in place of its own list is that list without what nothing here imports, and timm's pin."""
    (table,) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]["dependency-metadata"]
    assert (table["name"], table["version"]) == ("nerfstudio", version("nerfstudio"))
    asked = {Requirement(line) for line in requires("nerfstudio") or () if "extra ==" not in line}
    taken = {Requirement(line) for line in table["requires-dist"]}
    assert {str(line) for line in taken - asked} == {"timm"}
    left = {normal(line.name) for line in asked - taken}
    assert left - {"timm", "importlib-metadata"} == {*LEFT_OUT.values(), "ipywidgets", "jupyterlab"}
