"""Base models and exports come out of every store as they went in, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from shortstack.core.errors import Conflict, Invalid, NotFound, Poison
from shortstack.declarations.base_models import BaseModel
from shortstack.storage import weights
from shortstack.storage.blobs import BlobStore, FileBlobStore, MemoryBlobStore
from shortstack.storage.weights import fetch_base, fetch_export, import_base

LAYERS = {"q_proj", "down_proj"}


@pytest.fixture(params=["file", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return FileBlobStore(tmp_path / "blobs") if request.param == "file" else MemoryBlobStore()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder in Hugging Face layout, without a manifest."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"model":{}}')
    matrix, vector = numpy.ones((2, 2), dtype=numpy.float32), numpy.ones(2, dtype=numpy.float32)
    names = [f"model.layers.0.{layer}.weight" for layer in sorted(LAYERS)]
    save_file({**dict.fromkeys(names, matrix), "model.norm.weight": vector}, folder / "model.safetensors")
    return folder


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_base_comes_out_as_it_went_in(blobs: BlobStore, base: Path, tmp_path: Path) -> None:
    digest = import_base(blobs, "tiny", base)
    fetched = fetch_base(blobs, "tiny", tmp_path / "out" / "tiny")
    assert digest == BaseModel("tiny", base).digest() == BaseModel("tiny", fetched).digest()
    assert names_in(fetched) == names_in(base) | {"manifest.json"}
    for name in names_in(base):
        assert (fetched / name).read_bytes() == (base / name).read_bytes()
    assert names_in(tmp_path / "out") == {f"tiny/{name}" for name in names_in(fetched)}
    assert import_base(blobs, "tiny", fetched) == digest  # what was fetched may be imported again


def test_without_weights_digest_and_layers_are_known_all_the_same(blobs: BlobStore, base: Path, tmp_path: Path) -> None:
    digest = import_base(blobs, "tiny", base)
    fetched = fetch_base(blobs, "tiny", tmp_path / "tiny", weights=False)
    assert names_in(fetched) == {"config.json", "tokenizer.json", "manifest.json"}
    assert BaseModel("tiny", fetched).digest() == digest
    assert BaseModel("tiny", fetched).linear_layers() == LAYERS == BaseModel("tiny", base).linear_layers()
    whole = fetch_base(blobs, "tiny", tmp_path / "tiny")
    assert "model.safetensors" in names_in(whole)


def test_another_base_under_a_used_name_is_refused_with_what_to_do(blobs: BlobStore, base: Path) -> None:
    digest = import_base(blobs, "tiny", base)
    assert import_base(blobs, "tiny", base) == digest
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(Conflict, match="under a new name"):
        import_base(blobs, "tiny", base)
    assert import_base(blobs, "tiny-2", base) != digest


def test_an_import_that_was_cut_short_is_not_there_and_may_be_finished(
    blobs: BlobStore, base: Path, tmp_path: Path
) -> None:
    blobs.put_file("bases/tiny/config.json", base / "config.json")
    with pytest.raises(NotFound, match="import-base tiny"):
        fetch_base(blobs, "tiny", tmp_path / "tiny")
    import_base(blobs, "tiny", base)
    assert fetch_base(blobs, "tiny", tmp_path / "tiny").is_dir()


def test_a_rest_of_another_import_is_named(blobs: BlobStore, base: Path) -> None:
    blobs.put("bases/tiny/config.json", b'{"other":1}')
    with pytest.raises(Conflict, match=r"not finished has left another config\.json"):
        import_base(blobs, "tiny", base)


@pytest.mark.parametrize("name", ["../tiny", "a//b", "/tiny", ""])
def test_a_name_cannot_leave_the_prefix(blobs: BlobStore, base: Path, name: str) -> None:
    with pytest.raises(Invalid):
        import_base(blobs, name, base)


def test_what_is_no_model_is_not_imported(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"no config\.json"):
        import_base(blobs, "tiny", tmp_path)


def test_a_folder_that_differs_from_its_manifest_is_not_imported(blobs: BlobStore, base: Path, tmp_path: Path) -> None:
    import_base(blobs, "tiny", base)
    fetched = fetch_base(blobs, "tiny", tmp_path / "tiny")
    (fetched / "tokenizer.json").write_text("damaged")
    with pytest.raises(Poison, match=r"tokenizer\.json is not what"):
        import_base(blobs, "other", fetched)
    (fetched / "tokenizer.json").unlink()
    with pytest.raises(Poison, match=r"tokenizer\.json is named"):
        import_base(blobs, "other", fetched)


def exported(blobs: BlobStore, **files: bytes) -> tuple[str, str]:
    """An export of given files (``__`` stands for a slash, ``_dot_`` for a dot): key and sha256 of its manifest."""
    entries: dict[str, Any] = {}
    for given, content in files.items():
        name = given.replace("__", "/").replace("_dot_", ".")
        entries[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        blobs.put(f"models/abc/{name}", content)
    text = json.dumps({"digest": "abc", "files": entries}).encode()
    blobs.put("models/abc/export.manifest.json", text)
    return "models/abc/export.manifest.json", hashlib.sha256(text).hexdigest()


def test_parts_of_an_export_arrive_where_they_are_wanted(blobs: BlobStore, tmp_path: Path) -> None:
    key, sha = exported(blobs, merged__config_dot_json=b"{}", adapter__a_dot_bin=b"a", probes_dot_json=b"[]")
    assert names_in(fetch_export(blobs, key, sha, tmp_path / "all")) == {
        "merged/config.json",
        "adapter/a.bin",
        "probes.json",
        "export.manifest.json",
    }
    flat = fetch_export(blobs, key, sha, tmp_path / "flat", ["merged/"], strip="merged/")
    assert names_in(flat) == {"config.json", "export.manifest.json"}
    with pytest.raises(NotFound, match="begins with weights/"):
        fetch_export(blobs, key, sha, tmp_path / "none", ["weights/"])


def test_a_second_fetch_reads_no_object_but_the_manifest(blobs: BlobStore, tmp_path: Path) -> None:
    key, sha = exported(blobs, merged__config_dot_json=b"{}")
    fetch_export(blobs, key, sha, tmp_path / "x")
    blobs.delete_prefix("models/abc/merged")
    assert fetch_export(blobs, key, sha, tmp_path / "x").is_dir()


def test_a_tampered_object_never_arrives(blobs: BlobStore, tmp_path: Path) -> None:
    key, sha = exported(blobs, merged__a=b"right", merged__b=b"right")
    blobs.delete_prefix("models/abc/merged/b")
    blobs.put("models/abc/merged/b", b"wrong")
    with pytest.raises(Poison, match="merged/b has sha256"):
        fetch_export(blobs, key, sha, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(Poison, match="not the 0000"):
        fetch_export(blobs, key, "0" * 64, tmp_path / "x")


def test_a_manifest_cannot_write_outside_its_folder(blobs: BlobStore, tmp_path: Path) -> None:
    entries = {"../outside": {"sha256": "0" * 64, "bytes": 1}}
    text = json.dumps({"files": entries}).encode()
    blobs.put("models/abc/export.manifest.json", text)
    sha = hashlib.sha256(text).hexdigest()
    with pytest.raises(Invalid, match="not an object key"):
        fetch_export(blobs, "models/abc/export.manifest.json", sha, tmp_path / "x")


def test_a_manifest_that_is_none_is_named(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put("bases/tiny/manifest.json", b'{"files":{"a":{}}}')
    with pytest.raises(Poison, match=r"bases/tiny/manifest\.json: not readable"):
        fetch_base(blobs, "tiny", tmp_path / "x")


# The command, as init containers call it.


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileBlobStore:
    monkeypatch.setenv("SHORTSTACK_STORAGE_URL", f"file://{tmp_path / 'store'}")
    return FileBlobStore(tmp_path / "store")


def test_the_command_imports_and_fetches(
    store: FileBlobStore, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert weights.main(["import-base", "tiny", str(base)]) == 0
    assert weights.main(["fetch-base", "tiny", str(out), "--no-weights"]) == 0
    assert capsys.readouterr().out.split() == [BaseModel("tiny", base).digest(), str(out)]
    key, sha = exported(store, merged__config_dot_json=b"{}", probes_dot_json=b"[]")
    assert weights.main(["fetch-export", key, sha, str(tmp_path / "e"), "--parts", "probes"]) == 0
    assert names_in(tmp_path / "e") == {"probes.json", "export.manifest.json"}


def test_a_pod_fetches_what_its_variables_name(
    store: FileBlobStore, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_base(store, "tiny", base)
    sha_of_base = hashlib.sha256(store.get("bases/tiny/manifest.json")).hexdigest()
    key, sha = exported(store, merged__config_dot_json=b"{}", adapter__a=b"a")
    for weight, digest, found in [
        ("bases/tiny", sha_of_base, "model.safetensors"),
        (key, sha, "config.json"),
    ]:
        monkeypatch.setenv("SHORTSTACK_WEIGHTS", weight)
        monkeypatch.setenv("SHORTSTACK_WEIGHTS_SHA256", digest)
        monkeypatch.setenv("SHORTSTACK_WEIGHTS_DIR", str(tmp_path / digest[:12]))
        assert weights.main(["fetch"]) == 0
        assert (tmp_path / digest[:12] / found).is_file()


@pytest.mark.parametrize(("sha256", "code", "said"), [("", 70, "SHORTSTACK_WEIGHTS_SHA256 is not set"),
                                                      ("0" * 64, 65, "damaged or exchanged")])  # fmt: skip
def test_what_a_pod_cannot_fetch_is_one_line_and_an_exit_code(
    store: FileBlobStore,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sha256: str,
    code: int,
    said: str,
) -> None:
    import_base(store, "tiny", base)
    monkeypatch.setenv("SHORTSTACK_WEIGHTS", "bases/tiny")
    monkeypatch.setenv("SHORTSTACK_WEIGHTS_SHA256", sha256)
    monkeypatch.setenv("SHORTSTACK_WEIGHTS_DIR", str(tmp_path / "x"))
    assert weights.main(["fetch"]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_fetch_waits_for_the_import(store: FileBlobStore, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "shortstack.storage.weights", "fetch-base", "tiny", str(out), "--wait-s", "60"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True
    ) as waiting:
        try:
            assert waiting.stderr is not None
            assert "bases/tiny/manifest.json is not in the object store yet" in waiting.stderr.readline()
            import_base(store, "tiny", base)
            assert waiting.wait(30) == 0
        finally:
            waiting.kill()
    assert (out / "manifest.json").is_file()


def test_waiting_ends_at_once_when_the_pod_is_deleted(store: FileBlobStore, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shortstack.storage.weights", "fetch-base", "a", str(tmp_path), "--wait-s", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ, text=True) as waiting:
        killer = threading.Timer(30, waiting.kill)
        killer.start()
        assert waiting.stderr is not None
        assert "waiting up to 60 s" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(30) == 143
        killer.cancel()


def test_waiting_in_vain_says_how_to_import(
    store: FileBlobStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights.main(["fetch-base", "tiny", str(tmp_path / "x"), "--wait-s", "0.01"]) == 66
    assert "import-base tiny FOLDER" in capsys.readouterr().err


def test_one_base_is_left_out_where_others_are_there(
    store: FileBlobStore,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(weights, "_ALONE_S", 0.0)
    wanted = ["fetch-base", "large", str(tmp_path / "large"), "--wait-s", "60", "--unless", "other", "--unless", "tiny"]
    import_base(store, "tiny", base)
    assert weights.main(wanted) == 0
    assert 'base model "large" was not imported yet' in capsys.readouterr().out
    assert not (tmp_path / "large").exists()
    import_base(store, "large", base)
    assert weights.main(wanted) == 0
    assert (tmp_path / "large" / "manifest.json").is_file()


def test_the_only_base_is_waited_for(store: FileBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_ALONE_S", 0.0)
    assert weights.main(["fetch-base", "a", str(tmp_path / "a"), "--wait-s", "0.01", "--unless", "b"]) == 66
