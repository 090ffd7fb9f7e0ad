from __future__ import annotations

from pathlib import Path

from shortstack.training.trainer.checkpoints import MANIFEST, newest_whole, remove_broken, rotate, seal


def checkpoint(run: Path, step: int, *, sealed: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes([step]))
    (folder / f"global_step{step}" / "optimizer.pt").write_bytes(b"state")
    if sealed:
        seal(folder, step=step, ranks=2, attempt=1)
    return folder


def test_the_newest_whole_one_counts_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (2, 10):
        checkpoint(tmp_path, step)
    found = newest_whole(tmp_path)
    assert found is not None
    assert (found.step, found.ranks, found.path.name) == (10, 2, "checkpoint-10")


def test_one_without_a_manifest_is_not_whole(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4, sealed=False)
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 2


def test_one_with_a_changed_or_missing_file_is_not_whole(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 4) / "global_step4" / "optimizer.pt").write_bytes(b"stat?")
    (checkpoint(tmp_path, 6) / "adapter_model.safetensors").unlink()
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 2


def test_what_is_broken_goes_and_what_is_whole_stays(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4, sealed=False)
    assert remove_broken(tmp_path, newest_whole(tmp_path)) == ["checkpoint-4"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_from_the_start_every_checkpoint_goes(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    assert remove_broken(tmp_path, None) == ["checkpoint-2"]


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 4, 6, 10):
        checkpoint(tmp_path, step)
    rotate(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-6"]
    assert (tmp_path / "checkpoint-10" / MANIFEST).exists()


def test_an_empty_run_folder_has_none(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
