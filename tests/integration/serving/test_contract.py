"""The contract test and the rollout against the embedded inference server: planted faults are refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.serving.conftest import BASE, Fine, serving

from shortstack.core.errors import Poison
from shortstack.prompts.formats import PromptFormats
from shortstack.serving.contract import Proof, prove
from shortstack.serving.rollout import EmbeddedRollout, NotReady, adapter_of
from shortstack.serving.tgi import TgiClient
from shortstack.storage.blobs import BlobStore

Make = Callable[..., Fine]
# peft asks transformers 5 by a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def client(server: str) -> Iterator[TgiClient]:
    made = TgiClient(server, 60)
    yield made
    for adapter in made.adapters():
        made.drop_adapter(adapter)
    made.close()


@pytest.fixture
def rollout(client: TgiClient, tmp_path: Path) -> EmbeddedRollout:
    blobs = BlobStore.open(f"file://{tmp_path / 'blobs'}")
    return EmbeddedRollout(client, blobs, tmp_path / "serving", PromptFormats.builtin())


def proof(client: TgiClient, fine: Fine, adapter: str, *, template: str = "base") -> Proof:
    fmt = PromptFormats.builtin().with_base(fine.folder / "merged").get(template)
    return prove(client, fine.probes, fmt.prompt, adapter_id=adapter, base=client)


def test_the_adapter_passes_and_its_base_does_not(client: TgiClient, fine_tune: Make) -> None:
    fine = fine_tune(1)
    client.put_adapter("demo", fine.folder / "adapter")
    found = proof(client, fine, "demo")
    assert found.model.passed, found.model.why
    assert found.model.mean_distance < 0.01
    assert found.measurable


def test_no_adapter_is_refused(client: TgiClient, fine_tune: Make) -> None:
    assert "in training it was" in proof(client, fine_tune(1), "").model.why
    assert "422" in proof(client, fine_tune(1), "demo").model.why


def test_another_adapter_is_refused(client: TgiClient, fine_tune: Make) -> None:
    client.put_adapter("demo", fine_tune(2).folder / "adapter")
    assert not proof(client, fine_tune(1), "demo").model.passed


def test_another_template_is_refused(client: TgiClient, fine_tune: Make) -> None:
    fine = fine_tune(1)
    client.put_adapter("demo", fine.folder / "adapter")
    assert "another template" in proof(client, fine, "demo", template="alpaca").model.why


def test_default_rope_theta_is_refused(tiny_base: Path, fine_tune: Make, tmp_path: Path) -> None:
    fine, folder = fine_tune(1), tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    config.pop("rope_theta", None)
    (folder / "config.json").write_text(json.dumps(config))
    with serving(folder) as url:
        other = TgiClient(url, 60)
        other.put_adapter("demo", fine.folder / "adapter")
        found = proof(other, fine, "demo")
        other.close()
    assert not found.model.passed


def test_merged_weights_pass_and_unmerged_ones_do_not(tiny_base: Path, fine_tune: Make, tmp_path: Path) -> None:
    fine, unmerged = fine_tune(1), tmp_path / "merged"
    shutil.copytree(fine.folder / "merged", unmerged)
    shutil.copyfile(tiny_base / "model.safetensors", unmerged / "model.safetensors")
    passed = []
    for folder in (fine.folder / "merged", unmerged):
        with serving(folder) as url:
            other = TgiClient(url, 60)
            passed.append(proof(other, fine, "").model.passed)
            other.close()
    assert passed == [True, False]


def test_a_server_that_never_stops_is_refused(fine_tune: Make, tmp_path: Path) -> None:
    # An end token of its own making: what the model says third to the first prompt, as training would record it.
    fine, passed = fine_tune(1), []
    content = fine.probes
    end = content["probes"][0]["tokens"][2]["id"]
    for probe in content["probes"]:
        ids = [token["id"] for token in probe["tokens"]]
        del probe["tokens"][ids.index(end) + 1 if end in ids else len(ids) :]
    content["eos_ids"] = [end]
    fmt = PromptFormats.builtin().with_base(fine.folder / "merged").get("base")
    for ends in ([end], []):
        folder = tmp_path / f"merged-{len(ends)}"
        shutil.copytree(fine.folder / "merged", folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        with serving(folder) as url:
            other = TgiClient(url, 60)
            passed.append(prove(other, content, fmt.prompt, adapter_id="", base=other).model)
            other.close()
    assert [verdict.passed for verdict in passed] == [True, False]
    assert "goes on after its end token" in passed[1].why


def test_a_rollout_fetches_loads_and_proves(rollout: EmbeddedRollout, client: TgiClient, fine_tune: Make) -> None:
    export = fine_tune(1).put(rollout._blobs)
    asked: list[Any] = []
    result = rollout.roll_out(export, lambda: asked.append(True))

    assert result.proof.model.passed, result.proof.model.why
    assert result.proof.measurable
    assert asked == [True]
    endpoint = result.endpoint
    assert (endpoint.adapter_id, endpoint.prompt_format) == (adapter_of(export), "base")
    assert 0 < endpoint.max_input_tokens < endpoint.max_total_tokens
    assert rollout._blobs.exists(endpoint.tokenizer)
    assert "<|im_end|>" in rollout._blobs.get(endpoint.tokenizer_config).decode()

    rollout.remove(export)
    assert client.adapters() == {}
    rollout.reload(export, endpoint.url)
    assert list(client.adapters()) == [adapter_of(export)]


def test_a_base_is_served_as_it_is(rollout: EmbeddedRollout, tiny_base: Path) -> None:
    assert rollout.base(BASE, tiny_base, "").adapter_id == ""
    with pytest.raises(NotReady, match="runs another model"):
        rollout.base("other", Path("another-model"), "")


def test_a_manifest_that_training_did_not_name_is_refused(rollout: EmbeddedRollout, fine_tune: Make) -> None:
    export = fine_tune(1).put(rollout._blobs)
    export.manifest_sha256 = "0" * 64
    with pytest.raises(Poison, match="not the 0000"):
        rollout.roll_out(export, lambda: None)


def test_weights_with_nan_are_refused_while_chats_go_on(
    rollout: EmbeddedRollout, client: TgiClient, fine_tune: Make
) -> None:
    good, bad = fine_tune(1).put(rollout._blobs), fine_tune(3, float("nan")).put(rollout._blobs)
    rollout.roll_out(good, lambda: None)
    done, answers = threading.Event(), []

    def chat() -> None:
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 8, "adapter_id": adapter_of(good)}}
        while not done.wait(0.2):
            answers.append(httpx.post(f"{client.url}/generate", json=body, timeout=30))

    thread = threading.Thread(target=chat)
    thread.start()
    try:
        result = rollout.roll_out(bad, lambda: None)
    finally:
        done.set()
        thread.join()
    assert not result.proof.model.passed
    assert answers
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["generated_text"] for answer in answers}) == 1
