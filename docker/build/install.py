"""Adds a list of packages to the environment of an image: installed, trimmed, compiled. Run by that environment.

python install.py NAME [--base]    NAME is a list in /opt/shortstack/requirements; with --base, Python's own folders are
                                   compiled too, and rid of pip and its kind

What is compiled beforehand counts twice: a service starts with a read-only root, so it could keep nothing that it
compiles itself, and would do so at every start. The code files are told apart by content, not by time, so that
neither a layer's rounding of times nor a build with fixed times makes them stale.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import cache_from_source
from pathlib import Path

ENVIRONMENT = Path("/opt/shortstack")
UV = Path(__file__).with_name("uv")

NEEDLESS_FOLDERS = ("tests", "include")
"""Of libraries: their own tests, and headers for compilers, which no image has."""

NEEDLESS_FILES = (".pyi", ".pyx", ".pxd", ".pxi", ".h", ".hpp", ".c", ".cpp", ".a", ".cu", ".cuh")
"""Sources and stubs of what is compiled already."""

NEEDLESS = (
    "zstandard/_cffi.*",  # for other Pythons than this one
    "sqlalchemy/testing",  # for those who write dialects
)
"""Other parts that no service reads, as patterns below the packages."""

BUILD_TOOLS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")
"""Packages that come with an interpreter and only install others."""

BUILD_COMMANDS = ("pip", "pip[0-9]*", "wheel", "easy_install*")

UNUSED_STANDARD = ("test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "site-packages", "dist-packages")


def main(arguments: Sequence[str]) -> int:
    """Adds the packages of the named list."""
    name, *flags = arguments
    listed = ENVIRONMENT / "requirements" / f"{name}.txt"
    install(listed)
    packages = Path(sysconfig.get_path("purelib"))
    trim(packages)
    compile_all(packages, ())
    if "--base" in flags:
        standard = Path(sysconfig.get_path("stdlib"))
        # The usual Python image has its packages in the one folder, Debian's Python in the other.
        remove_build_tools([standard / "site-packages", standard.with_name("python3") / "dist-packages"])
        remove_commands([Path(sys.base_prefix) / "bin"])
        shutil.rmtree(standard / "ensurepip", ignore_errors=True)  # it holds pip as a file to install
        # Debian's is compiled; that of the usual Python image comes without.
        compile_all(standard, UNUSED_STANDARD)
    return 0


def install(listed: Path) -> None:
    """Installs exactly what ``listed`` names; it names everything that its packages need."""
    if not any(line.strip() and not line.startswith("#") for line in listed.read_text(encoding="utf-8").splitlines()):
        return
    command = [str(UV), "pip", "install", "--config-file", str(UV.with_name("uv.toml")), "--python", sys.executable]
    command += ["--no-deps", "--requirements", str(listed)]
    chosen = {"UV_SYSTEM_CERTS": "1", "UV_LINK_MODE": "copy", "UV_NO_PROGRESS": "1", "UV_CACHE_DIR": "/root/.cache/uv"}
    chosen["HOME"] = "/root"
    chosen["DS_BUILD_OPS"] = "0"  # DeepSpeed's own kernels would be compiled; training here calls none of them.
    if backend := os.environ.get("TORCH_BACKEND"):
        chosen["UV_TORCH_BACKEND"] = backend
    subprocess.run(command, env=dict(os.environ) | chosen, check=True)


def trim(packages: Path) -> None:
    """Removes from ``packages`` what no service reads."""
    named = [path for pattern in NEEDLESS for path in packages.glob(pattern)]
    folders = [path for name in NEEDLESS_FOLDERS for path in packages.rglob(name)]
    for folder in filter(Path.is_dir, [*named, *folders]):
        shutil.rmtree(folder, ignore_errors=True)  # one may lie in another that is gone already
    files = [path for path in packages.rglob("*") if path.suffix in NEEDLESS_FILES]
    for file in filter(Path.is_file, [*named, *files]):
        file.unlink()


def remove_build_tools(folders: Sequence[Path]) -> None:
    """Removes pip and its kind from folders of packages, with what says that they are installed."""
    patterns = [pattern for name in BUILD_TOOLS for pattern in (name, f"{name}-*.*-info")]
    for path in (path for folder in folders for pattern in patterns for path in folder.glob(pattern)):
        shutil.rmtree(path)
    for folder in folders:
        (folder / "distutils-precedence.pth").unlink(missing_ok=True)  # it would import setuptools at each start


def remove_commands(folders: Sequence[Path]) -> None:
    """Removes the commands that would start pip and its kind."""
    for path in (path for folder in folders for pattern in BUILD_COMMANDS for path in folder.glob(pattern)):
        path.unlink()


def compile_all(folder: Path, without: Sequence[str]) -> None:
    """Compiles every module below ``folder`` that is not compiled yet."""
    with ProcessPoolExecutor() as pool:
        list(pool.map(compile_one, uncompiled(folder, without), chunksize=64))


def uncompiled(folder: Path, without: Sequence[str]) -> Iterator[Path]:
    """Modules below ``folder`` that have no compiled file, but for the folders ``without`` at its top."""
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).parts[0] not in without
        if inside and not Path(cache_from_source(str(file))).exists():
            yield file


def compile_one(file: Path) -> None:
    """Compiles one module. What is no valid Python, such as a template, is left for whoever imports it to say."""
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    try:
        py_compile.compile(str(file), doraise=True, quiet=1, invalidation_mode=unchecked)
    except (py_compile.PyCompileError, UnicodeDecodeError):
        sys.stderr.write(f"not compiled: {file}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
