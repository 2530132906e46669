"""The repository installs: wheel, editable install, ranges, pins, conda environment, Makefile and CI agree."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRA = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]
PLATFORMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
]

# The files that need an extra.
EXTRA_OF = {"sources.py": "data", "export.py": "export"}
# The file that compares with packages which benchmarks/peers.txt lists.
WITH_PEERS = "vimlearn/benchmark/scan_contest.py"

# Where the files of a folder lie in the wheel, if elsewhere.
HOMES = {"kernels": "vimlearn/kernels", "data/checkpoints": "vimlearn/weights"}


def pins(name: str = "constraints.txt") -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def package_files(folder: str) -> set[str]:
    """Every file of one package folder, by its path inside the wheel."""
    home = HOMES.get(folder, folder)
    found = (path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {f"{home}/{path.as_posix()}" for path in found
            if "__pycache__" not in path.parts and not any(part.startswith(".") for part in path.parts)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built offline and without build isolation, from a copy of what it is made of."""
    copy = tmp_path_factory.mktemp("source")
    for folder in ("vimlearn", *HOMES):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "-w", "dist", "."]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next((copy / "dist").glob("*.whl"))


def test_the_wheel_holds_every_module_and_data_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert packed == set().union(*map(package_files, ("vimlearn", *HOMES)))
    assert licences


def test_kernels_and_weights_are_found_in_the_unpacked_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import vimlearn, vimlearn.kernels as k; " \
           "from vimlearn.download import fetch; print(vimlearn.__file__, k.__file__, fetch('shipped:cifar10'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = [Path(path).relative_to(tmp_path / "vimlearn").as_posix() for path in run.stdout.split()]
    assert found == ["__init__.py", "kernels/__init__.py", "weights/vim_cifar10.safetensors"]


def test_the_editable_install_maps_kernels_and_weights(tmp_path):
    origin = json.loads(distribution("vimlearn").read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        pytest.skip("vimlearn is not installed in editable mode here")
    code = "import vimlearn.kernels as k; import vimlearn.weights as w; print(k.__file__, w.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(ROOT / folder / "__init__.py") for folder in HOMES]


def test_constraints_pin_every_dependency_within_its_range():
    pinned = {canonicalize_name(pin.name): pin for pin in pins()}
    for requirement in REQUIRED + EXTRA:
        pin = pinned.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned in constraints.txt"
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version), f"{pin} is outside {requirement}"


def test_constraints_are_exact_sorted_and_free_of_local_builds():
    for pin in pins():
        assert [spec.operator for spec in pin.specifier] == ["=="], pin
        assert "+" not in str(pin.specifier), f"{pin} names a local build that other machines cannot get"
    names = [pin.name.lower() for pin in pins()]
    assert names == sorted(set(names))


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform["sys_platform"])
def test_what_exists_on_one_platform_only_is_marked(platform):
    linux, windows = platform["sys_platform"] == "linux", platform["os_name"] == "nt"
    applies = {canonicalize_name(pin.name): pin.marker is None or pin.marker.evaluate(platform) for pin in pins()}
    for requirement in REQUIRED:
        if requirement.marker is None or requirement.marker.evaluate(platform):
            assert applies[canonicalize_name(requirement.name)], requirement.name
    assert applies["triton"] == linux
    assert applies["ptyprocess"] == (not windows)
    assert applies["pywinpty"] == windows


def test_installed_versions_are_those_of_the_constraints_where_the_set_up_made_them():
    if not (Path(sys.prefix) / "ready").exists():
        pytest.skip("this environment was not made by the Makefile")
    for pin in pins():
        if pin.name in ("torch", "torchvision", "triton", "timm", "jupyterlab", "nbval") and (
                pin.marker is None or pin.marker.evaluate()):
            assert pin.specifier.contains(distribution(pin.name).version), pin


def test_the_conda_environment_equals_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = conda[-1]["pip"]
    assert [line for line in listed if line.startswith("-")] == ["-c constraints.txt", "-e ."]
    ours = [Requirement(line) for line in listed if not line.startswith("-")]
    assert {str(requirement) for requirement in ours} == {str(requirement) for requirement in REQUIRED + EXTRA}
    python = Requirement(next(line for line in conda[:-1] if line.startswith("python")))
    assert PROJECT["requires-python"] in str(python.specifier).split(",")


def imports(path: Path) -> set[str]:
    """The top-level names of the packages that one file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_everything_imported_is_a_declared_dependency():
    """The course and the tests may use the extras too, and a few files one of them (and say so where it is missing);
    the rest of the package only what is always installed."""
    own = {"vimlearn", *(path.stem for path in (ROOT / "tests").rglob("*")), *sys.stdlib_module_names}
    owners, undeclared = packages_distributions(), []
    for path in (file for folder in ("vimlearn", "kernels", "tests") for file in (ROOT / folder).rglob("*.py")):
        place = path.relative_to(ROOT)
        allowed = REQUIRED + EXTRA if {"course", "tests"} & set(place.parts) else REQUIRED
        if place.name in EXTRA_OF:
            allowed = REQUIRED + [Requirement(line) for line in PROJECT["optional-dependencies"][EXTRA_OF[place.name]]]
        if place.as_posix() == WITH_PEERS:
            allowed = REQUIRED + pins("benchmarks/peers.txt")
        declared = {canonicalize_name(requirement.name) for requirement in allowed}
        for module in imports(path) - own:
            if place.parts[0] == "tests" and module not in owners:
                continue  # a test that wants a module to be absent
            if not declared & {canonicalize_name(name) for name in owners.get(module, [module])}:
                undeclared.append(f"{place} imports {module}")
    assert not undeclared


def test_versions_agree():
    import vimlearn

    assert vimlearn.__version__ == PROJECT["version"]


def test_continuous_integration_runs_the_test_command_and_nothing_else():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "make test"
    assert all(re.match(r"(set|cd) ", line) for line in lines[:-1])


def test_make_refuses_an_old_python(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("there is no make on this machine")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "oldpython"
    pretend = 'import sys; sys.version_info = (3, 10); sys.version = "3.10.2"; exec(sys.argv[1])'
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{pretend}' \"$2\"\n")
    old.chmod(0o755)
    run = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0
    assert "vimlearn needs Python 3.11 or newer, and this is 3.10.2" in run.stderr
    assert not (tmp_path / ".venv").exists()


def test_no_committed_file_names_a_path_of_one_machine():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = "|".join(["work", "root", "home", "tmp", "opt", "Users"])
    machine = re.compile(rf"(?<![\w.$}}~-])/(?:{folders})/\w[\w./-]*")
    for name in filter(None, listed.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        assert not machine.search(text), f"{name} names {machine.search(text).group()}"
