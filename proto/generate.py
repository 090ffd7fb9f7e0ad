"""Generates services/shortstack/*/v1 from proto/, or checks that what is committed is fresh.

python proto/generate.py          writes
python proto/generate.py --check  exits 1 and names each file that differs
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Writes modules and typing stubs of every .proto file below ``target``.

    Raises:
        SystemExit: protoc refused a file; its own words are on standard error.
    """
    sources = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT / 'proto'}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out={target}",
            f"--mypy_grpc_out={target}",
            *sources,
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc exited with {status}")
    for path in list(target.rglob("*_pb2_grpc.py*")):
        if "service " not in source_of(path, target).read_text():
            path.unlink()
    for folder in {path.parent for path in target.rglob("*_pb2.py")}:
        (folder / "__init__.py").touch()


def source_of(generated: Path, target: Path) -> Path:
    """The .proto file that ``generated`` below ``target`` was made from."""
    stem = generated.name.split("_pb2")[0]
    return ROOT / "proto" / generated.relative_to(target).parent / f"{stem}.proto"


def found(root: Path) -> dict[str, bytes]:
    """Generated files below ``root`` by relative path."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.name.endswith(GENERATED)}


def main() -> int:
    """Writes, or with --check compares."""
    services = ROOT / "services"
    if "--check" not in sys.argv[1:]:
        generate(services)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = found(Path(scratch)), found(services)
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    for name in stale:
        print(f"services/{name} differs from its .proto; run: make proto", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
