"""Builds the images with docker or buildah, whichever is there, and shows their sizes. Standard library only.

make images                             all of them, as shortstack/NAME:VERSION
make images ARGS='--only gateway'       one and what it stands on
make images ARGS='--build-arg TORCH_BACKEND=cpu --prefix registry.example/team/shortstack'

An image's Dockerfile says by its arguments what it stands on: BASE_IMAGE, TORCH_IMAGE, BUILD_IMAGE. tgi is built
where TGI_IMAGE is given, since it is large and stands on an image that others make.
Behind a proxy with certificates of its own, or on an index of packages of one's own: --volume (buildah alone mounts
such into a build) and the variables PIP_INDEX_URL and UV_DEFAULT_INDEX, which are passed on.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from environment import ROOT, SetupError, say

__all__ = ["IMAGES", "Plan", "build_images", "choose_engine", "main", "version"]

IMAGES = (
    "build",
    "base",
    "torch",
    "ingestion",
    "formatting",
    "assembly",
    "serving",
    "gateway",
    "cli",
    "broker",
    "training",
    "inference",
    "base-model",
    "tgi",
)
"""In the order in which they are built. All but build, base and torch are for running."""

PARENTS = {"BUILD_IMAGE": "build", "BASE_IMAGE": "base", "TORCH_IMAGE": "torch"}
"""Build arguments that name another one of the images."""

ON_REQUEST = {"tgi": "TGI_IMAGE"}
"""Images that are built where this argument is given, or where they are named."""

FROM_ENVIRONMENT = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")
INPUTS_LABEL = "shortstack.inputs"
VERSION_LABEL = "org.opencontainers.image.version"
REVISION_LABEL = "org.opencontainers.image.revision"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build and how.

    Attributes:
        names: the images, in any order; what they stand on is built too.
        prefix: before each image's name.
        tag: after it.
        arguments: build arguments by name; each goes to the Dockerfiles that declare it.
        volumes: mounts for the steps of a build, HOST:PATH[:ro]; buildah only.
        files: other Dockerfiles than docker/NAME.Dockerfile.
        network: network of the steps; empty takes the engine's own.
        only_changed: whether to leave an image alone that was made from the same files and arguments.
    """

    names: Sequence[str]
    prefix: str
    tag: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    volumes: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    network: str = ""
    only_changed: bool = False

    def image(self, name: str) -> str:
        """The full name of an image."""
        return f"{self.prefix}/{name}:{self.tag}"

    def dockerfile(self, name: str) -> Path:
        """The image's Dockerfile."""
        return self.files.get(name, ROOT / "docker" / f"{name}.Dockerfile")

    def declared(self, name: str) -> list[str]:
        """The build arguments that the image's Dockerfile declares."""
        return re.findall(r"^ARG (\w+)", self.dockerfile(name).read_text(encoding="utf-8"), re.MULTILINE)

    def parents(self, name: str) -> list[str]:
        """The images that the image stands on, but for those that an argument replaces."""
        own = [argument for argument in self.declared(name) if argument not in self.arguments]
        return [PARENTS[argument] for argument in own if argument in PARENTS]

    def arguments_of(self, name: str) -> dict[str, str]:
        """The build arguments that go to the image's Dockerfile."""
        images = {argument: self.image(parent) for argument, parent in PARENTS.items()}
        known = images | environment_arguments() | dict(self.arguments)
        return {argument: known[argument] for argument in self.declared(name) if argument in known}

    def ordered(self) -> list[str]:
        """All that is to be built, what others stand on first."""
        wanted: set[str] = set()
        waiting = list(self.names)
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting += self.parents(name)
        return [name for name in IMAGES if name in wanted]


class Engine(Protocol):
    """What builds images."""

    def build(self, plan: Plan, name: str, labels: Mapping[str, str]) -> None:
        """Builds one image.

        Raises:
            SetupError: it could not be built.
        """

    def label(self, image: str, label: str) -> str | None:
        """A label of an image that is there; None if it has no such label, or is not there."""

    def sizes(self, image: str, below: str | None) -> tuple[int, int | None]:
        """Bytes of an image, and of its layers over those of the image ``below`` (None where that is not known)."""


@dataclass(frozen=True, slots=True)
class Buildah:
    """Builds without a server; its steps share the network of this machine unless told otherwise."""

    command: str = "buildah"

    def build(self, plan: Plan, name: str, labels: Mapping[str, str]) -> None:
        """As `Engine.build`."""
        # Some versions leave the container of a stage behind that is only mounted, at every build.
        flags = ["--layers", "--force-rm", "--network", plan.network or "host", *repeated("--volume", plan.volumes)]
        run_build([self.command, "build", *flags, *build_flags(plan, name, labels), str(ROOT)], name)

    def label(self, image: str, label: str) -> str | None:
        """As `Engine.label`."""
        found = self._inspect(image)
        return ((found["OCIv1"].get("config") or {}).get("Labels") or {}).get(label) if found else None

    def sizes(self, image: str, below: str | None) -> tuple[int, int | None]:
        """As `Engine.sizes`. An image built here lists its layers with their sizes on disk, its base's included."""
        found, base = self._inspect(image), self._inspect(below) if below else None
        layers = [int(layer["size"]) for layer in json.loads(found["Manifest"])["layers"]] if found else []
        return sum(layers), sum(layers[len(base["OCIv1"]["rootfs"]["diff_ids"]) :]) if base else None

    def _inspect(self, image: str) -> dict[str, Any] | None:
        return answer_of([self.command, "inspect", "--type", "image", image])


@dataclass(frozen=True, slots=True)
class Docker:
    """Builds with BuildKit in the running engine."""

    command: str = "docker"

    def build(self, plan: Plan, name: str, labels: Mapping[str, str]) -> None:
        """As `Engine.build`."""
        if plan.volumes:
            raise SetupError(
                "docker mounts nothing into a build: use buildah (--engine buildah), or leave --volume out"
            )
        flags = ["--network", plan.network] if plan.network else []
        run_build([self.command, "build", *flags, *build_flags(plan, name, labels), str(ROOT)], name)

    def label(self, image: str, label: str) -> str | None:
        """As `Engine.label`."""
        found = self._inspect(image)
        return (found["Config"].get("Labels") or {}).get(label) if found else None

    def sizes(self, image: str, below: str | None) -> tuple[int, int | None]:
        """As `Engine.sizes`."""
        found, base = self._inspect(image), self._inspect(below) if below else None
        size = int(found["Size"]) if found else 0
        return size, size - int(base["Size"]) if base else None

    def _inspect(self, image: str) -> dict[str, Any] | None:
        return answer_of([self.command, "image", "inspect", "--format", "{{json .}}", image])


ENGINES: Mapping[str, Callable[[], Engine]] = {"docker": Docker, "buildah": Buildah}


def choose_engine(named: str | None = None) -> Engine:
    """The engine that is named, else docker where its engine runs, else buildah.

    Raises:
        SetupError: there is none.
    """
    if named:
        if shutil.which(named) is None:
            raise SetupError(f"there is no command {named} on the PATH")
        return ENGINES[named]()
    if shutil.which("docker") and succeeds(["docker", "info"]):
        return Docker()
    if shutil.which("buildah"):
        return Buildah()
    raise SetupError(
        "images are built with docker (its engine running) or buildah, and neither is here. "
        "Debian, Ubuntu: apt install buildah runc"
    )


def build_images(plan: Plan, engine: Engine) -> list[str]:
    """Builds what ``plan`` names and what that stands on; returns what was built, in order.

    Raises:
        SetupError: one of them could not be built.
    """
    digests: dict[str, str] = {}
    for name in plan.ordered():
        digests[name] = inputs_digest(plan, name, digests)
    wanted = [name for name in plan.names if not (plan.only_changed and is_current(plan, name, digests, engine))]
    for name in [name for name in plan.names if name not in wanted]:
        say(f"{plan.image(name)}: unchanged")
    building = replace(plan, names=wanted).ordered()
    for name in building:
        say(f"{plan.image(name)}: building")
        began = time.monotonic()
        # Not for what others stand on: a label there would make all of those anew, packages included.
        engine.build(plan, name, {} if name in PARENTS.values() else labels_of(digests[name]))
        say(f"{plan.image(name)}: built in {time.monotonic() - began:.0f} s")
    return building


def is_current(plan: Plan, name: str, digests: Mapping[str, str], engine: Engine) -> bool:
    """Whether an image is there as its files and arguments make it."""
    return engine.label(plan.image(name), INPUTS_LABEL) == digests[name]


def inputs_digest(plan: Plan, name: str, digests: Mapping[str, str]) -> str:
    """Digest of all that decides what an image holds: its Dockerfile, arguments, files, and what it stands on."""
    found = hashlib.sha256(plan.dockerfile(name).read_bytes())
    found.update(json.dumps([plan.arguments_of(name), [digests[parent] for parent in plan.parents(name)]]).encode())
    if name == "build":  # the only one that reads files of the checkout; all others take theirs from it
        for file in context_files(ROOT):
            found.update(f"\0{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:32]


def context_files(root: Path) -> list[Path]:
    """The files that a build may see, as .dockerignore lists them, sorted."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = [root / line[1:] for line in lines if line.startswith("!")]
    below = [file for path in let_in for file in (path.rglob("*") if path.is_dir() else [path])]
    caches = {"__pycache__", ".mypy_cache"}
    return sorted(file for file in below if file.is_file() and not caches.intersection(file.parts))


def labels_of(digest: str) -> dict[str, str]:
    """Labels that depend on when and from what an image is built; the others stand in its Dockerfile."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False) if shutil.which("git") else None
    revision = {REVISION_LABEL: done.stdout.strip()} if done and done.returncode == 0 else {}
    return {INPUTS_LABEL: digest, VERSION_LABEL: version(), **revision}


def version() -> str:
    """The version of the package, which is the images' tag."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        return str(tomllib.load(stream)["project"]["version"])


def environment_arguments() -> dict[str, str]:
    """Where packages come from, as pip and uv here are told."""
    found = {name: os.environ[name] for name in FROM_ENVIRONMENT if os.environ.get(name)}
    return {"UV_DEFAULT_INDEX": found["PIP_INDEX_URL"], **found} if "PIP_INDEX_URL" in found else found


def size_table(plan: Plan, engine: Engine, python_image: str) -> str:
    """Sizes of what was built, in MB (10^6 bytes); beside them that over the Python image, where that is known."""
    rows = [("image", "MB", "over Python's")]
    for name in plan.ordered():
        total, over = engine.sizes(plan.image(name), python_image)
        rows.append((plan.image(name), f"{total / 1e6:.0f}", "" if over is None else f"{over / 1e6:.0f}"))
    width = max(len(row[0]) for row in rows)
    return "".join(f"{name:<{width}}  {total:>6}  {over:>13}\n" for name, total, over in rows)


def build_flags(plan: Plan, name: str, labels: Mapping[str, str]) -> list[str]:
    """Flags that docker and buildah share."""
    arguments = [f"{argument}={value}" for argument, value in plan.arguments_of(name).items()]
    named = [f"{label}={value}" for label, value in labels.items()]
    flags = ["--file", str(plan.dockerfile(name)), "--tag", plan.image(name)]
    return [*flags, *repeated("--build-arg", arguments), *repeated("--label", named)]


def repeated(flag: str, values: Iterable[str]) -> list[str]:
    """``flag`` before each of ``values``."""
    return [part for value in values for part in (flag, value)]


def run_build(command: Sequence[str], name: str) -> None:
    """Runs a build with its output shown.

    Raises:
        SetupError: it failed.
    """
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode != 0:
        raise SetupError(f"the image {name} could not be built; the reason stands above. Repeating is safe")


def answer_of(command: Sequence[str]) -> dict[str, Any] | None:
    """The JSON object that ``command`` prints; None if it fails, as it does for an image that is not there."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def succeeds(command: Sequence[str]) -> bool:
    """Whether ``command`` ends with status 0 within a minute."""
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def plan_of(arguments: Sequence[str]) -> tuple[Plan, str | None]:
    """The plan that the command line describes, and the engine it names.

    Raises:
        SetupError: a name or a build argument is not known.
    """
    parser = argparse.ArgumentParser(prog="make images", description="Builds the images and shows their sizes.")
    parser.add_argument("--only", action="append", metavar="NAME", help="this image and what it stands on; repeatable")
    parser.add_argument("--prefix", default="shortstack", help="before each image's name (%(default)s)")
    parser.add_argument("--tag", default=version(), help="after it (%(default)s)")
    parser.add_argument("--build-arg", action="append", default=[], metavar="K=V", help="PYTHON_IMAGE, TORCH_BACKEND…")
    parser.add_argument("--volume", action="append", default=[], metavar="HOST:PATH[:ro]", help="for buildah's steps")
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH", help="another Dockerfile for NAME")
    parser.add_argument("--network", default="", help="network of the steps (buildah: host; docker: its own)")
    parser.add_argument("--engine", choices=sorted(ENGINES), help="instead of whichever is there")
    parser.add_argument("--if-changed", action="store_true", help="leave alone what was made from the same files")
    given = parser.parse_args(arguments)
    build_arguments = pairs(given.build_arg, "--build-arg")
    files = {name: Path(path).absolute() for name, path in pairs(given.file, "--file").items()}
    names = given.only or [name for name in IMAGES if name not in ON_REQUEST or ON_REQUEST[name] in build_arguments]
    for name in [*names, *files]:
        must_know(name, IMAGES, "image")
        if name in ON_REQUEST and name not in files and (argument := ON_REQUEST[name]) not in build_arguments:
            raise SetupError(f"{name} stands on an image of others: give --build-arg {argument}=REGISTRY/NAME:TAG")
    plan = Plan(names, given.prefix, given.tag, build_arguments, given.volume, files, given.network, given.if_changed)
    for argument in build_arguments:
        must_know(argument, [known for name in IMAGES for known in plan.declared(name)], "build argument")
    return plan, given.engine


def pairs(values: Sequence[str], flag: str) -> dict[str, str]:
    """``K=V`` texts as a mapping."""
    if wrong := [value for value in values if "=" not in value]:
        raise SetupError(f'{flag} {wrong[0]}: write NAME=VALUE, for example "{flag} NAME=value"')
    return {name: value for name, _, value in (value.partition("=") for value in values)}


def must_know(name: str, known: Sequence[str], kind: str) -> None:
    """Returns if ``name`` is among ``known``.

    Raises:
        SetupError: it is not; names the nearest.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise SetupError(f'there is no {kind} "{name}"' + (f"; did you mean {near[0]}?" if near else ""))


def main(arguments: Sequence[str]) -> int:
    """Builds, then prints the table of sizes."""
    plan, named = plan_of(arguments)
    engine = choose_engine(named)
    build_images(plan, engine)
    for name in [] if "--only" in arguments else [name for name in ON_REQUEST if name not in plan.names]:
        say(f"{name} was left out: give --build-arg {ON_REQUEST[name]}=IMAGE to build it.")
    sys.stdout.write(size_table(plan, engine, python_image(plan)))
    return 0


def python_image(plan: Plan) -> str:
    """The image that the base stands on: the one given, else the Dockerfile's default."""
    text = plan.dockerfile("base").read_text(encoding="utf-8")
    default = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    return plan.arguments.get("PYTHON_IMAGE") or (default.group(1) if default else "")
