"""What every rollout promises, on the embedded server and on Deployments whose pods are real servers."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from tests.fakes.kubernetes import FakeKubernetes
from tests.integration.serving.conftest import BASE, Fine
from tests.integration.serving.kubelet import Kubelet
from tests.polling import until
from tests.unit.serving.deployed import TEMPLATE

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Poison, Transient
from shortstack.messages.v1.serving_pb2 import Endpoint
from shortstack.messages.v1.training_pb2 import Export
from shortstack.prompts.formats import PromptFormats
from shortstack.serving.deployments.fleet import Fleet
from shortstack.serving.deployments.rollout import DeploymentRollout, Terms
from shortstack.serving.deployments.server import Servers
from shortstack.serving.rollout import EmbeddedRollout, Held, NotReady, RolledOut, Rollout
from shortstack.serving.tgi import TgiClient
from shortstack.storage.blobs import BlobStore
from shortstack.storage.weights import fetch_base, import_base

Make = Callable[..., Fine]
T = TypeVar("T")
DEADLINE_S = 60
# peft asks transformers 5 by a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


class Place(ABC):
    """A rollout with the servers behind it."""

    rollout: Rollout
    blobs: BlobStore
    base_folder: Path

    @abstractmethod
    def sync(self) -> None:
        """Lets servers start and end."""

    @abstractmethod
    def lose(self, export: Export) -> None:
        """Somebody takes a model from its server."""

    @abstractmethod
    def holds(self, export: Export) -> bool:
        """Whether a server holds a model."""

    @abstractmethod
    def later(self) -> None:
        """Time passes, for what believes an answer for a while."""

    @abstractmethod
    def close(self) -> None:
        """Ends what was started."""

    def bring(self, act: Callable[[], T]) -> T:
        """Acts until the servers are ready for it."""

        def done() -> T | None:
            try:
                return act()
            except Transient:
                self.sync()
                self.later()
                return None

        return until(done, "the servers are ready for it", deadline_s=DEADLINE_S, every_s=0.05)

    def base(self) -> Endpoint:
        return self.bring(lambda: self.rollout.base(BASE, self.base_folder, ""))

    def roll_out(self, export: Export) -> RolledOut:
        self.base()
        return self.bring(lambda: self.rollout.roll_out(export, lambda: None))

    def keep(self, held: Sequence[Held]) -> None:
        """Until nothing more is taken away."""
        for _ in range(3):
            self.rollout.keep(held)
            self.sync()
            self.later()


class Embedded(Place):
    def __init__(self, server: str, blobs: BlobStore, base: Path, folder: Path) -> None:
        self.client = TgiClient(server, 60)
        self.blobs, self.base_folder = blobs, base
        self.rollout = EmbeddedRollout(self.client, blobs, folder / "serving", PromptFormats.builtin())

    def sync(self) -> None:
        """The one server is up."""

    def later(self) -> None:
        """It is asked each time."""

    def lose(self, export: Export) -> None:
        self.client.drop_adapter(export.digest[:12])

    def holds(self, export: Export) -> bool:
        return export.digest[:12] in self.client.adapters()

    def close(self) -> None:
        for adapter in self.client.adapters():
            self.client.drop_adapter(adapter)
        self.client.close()


class Deployments(Place):
    def __init__(self, blobs: BlobStore, storage_url: str, base: Path, folder: Path) -> None:
        self.blobs, self.kubernetes = blobs, FakeKubernetes()
        self.kubelet = Kubelet(self.kubernetes, folder / "volumes")
        self.kubernetes.add("configmaps", "stack-owner")
        import_base(blobs, BASE, base)
        self.base_folder = fetch_base(blobs, BASE, folder / "bases" / BASE, weights=False)
        template = folder / "server.yaml"
        template.write_text(TEMPLATE.replace("memory://", storage_url))
        servers, self.clock = Servers(template), FakeClock(datetime.now(UTC))
        self.rollout = DeploymentRollout(
            Fleet(self.kubernetes.cluster("stack-owner"), servers.selector, self.clock),
            servers,
            lambda url: TgiClient(url, 60),
            blobs,
            folder / "serving",
            PromptFormats.builtin(),
            {BASE: self.base_folder},
            self.clock,
            Terms(drain_s=0.0),
            self.kubelet,
        )

    def sync(self) -> None:
        self.kubelet.sync()

    def later(self) -> None:
        self.clock.advance(1)

    def lose(self, export: Export) -> None:
        name = self._name(export)
        for plural in ("deployments", "services"):
            self.kubernetes.delete(plural, name)
        self.kubelet.sync()

    def holds(self, export: Export) -> bool:
        return bool(self._name(export))

    def close(self) -> None:
        self.kubelet.close()
        self.rollout.close()

    def _name(self, export: Export) -> str:
        for found in self.kubernetes.all("deployments"):
            if found["metadata"]["annotations"]["shortstack/weights"] == export.manifest:
                return str(found["metadata"]["name"])
        return ""


@pytest.fixture(params=["embedded", "deployments"])
def place(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Iterator[Place]:
    url = f"file://{tmp_path / 'blobs'}"
    blobs = BlobStore.open(url)
    made: Place
    if request.param == "embedded":
        made = Embedded(request.getfixturevalue("server"), blobs, tiny_base, tmp_path)
    else:
        made = Deployments(blobs, url, tiny_base, tmp_path)
    yield made
    made.close()


def answer(endpoint: Endpoint, prompt: str) -> str:
    parameters = {"max_new_tokens": 12, "do_sample": False}
    if endpoint.adapter_id:
        parameters["adapter_id"] = endpoint.adapter_id
    response = httpx.post(f"{endpoint.url}/generate", json={"inputs": prompt, "parameters": parameters}, timeout=30)
    assert response.status_code == 200, response.text
    return str(response.json()["generated_text"])


def test_a_base_answers_and_a_model_answers_otherwise(place: Place, fine_tune: Make) -> None:
    base, result = place.base(), place.roll_out(fine_tune(1).put(place.blobs))
    assert result.proof.model.passed, result.proof.model.why
    assert result.proof.measurable
    for endpoint in (base, result.endpoint):
        assert 0 < endpoint.max_input_tokens < endpoint.max_total_tokens
        assert place.blobs.exists(endpoint.tokenizer)
        assert "<|im_end|>" in place.blobs.get(endpoint.tokenizer_config).decode()
    assert answer(base, "question 1: say b") != answer(result.endpoint, "question 1: say b")


def test_two_models_stand_beside_each_other(place: Place, fine_tune: Make) -> None:
    one, two = (place.roll_out(fine_tune(seed).put(place.blobs)).endpoint for seed in (1, 2))
    assert answer(one, "question 1: say b") != answer(two, "question 1: say b")


def test_a_model_that_was_lost_comes_back_where_its_route_leads(place: Place, fine_tune: Make) -> None:
    export = fine_tune(1).put(place.blobs)
    endpoint = place.roll_out(export).endpoint
    said = answer(endpoint, "hello")
    place.lose(export)
    assert not place.holds(export)
    endpoint.url = place.bring(lambda: place.rollout.reload(export, endpoint.url))
    assert answer(endpoint, "hello") == said


def test_a_model_that_is_removed_is_gone_and_others_stay(place: Place, fine_tune: Make) -> None:
    one, two = fine_tune(1).put(place.blobs), fine_tune(2).put(place.blobs)
    place.roll_out(one)
    endpoint = place.roll_out(two).endpoint
    place.rollout.remove(one)
    place.rollout.remove(one)
    place.keep([Held(two, endpoint.url)])
    assert not place.holds(one)
    assert place.holds(two)
    assert answer(endpoint, "question 1: say b") != answer(place.base(), "question 1: say b")


def test_a_rollout_that_is_repeated_changes_nothing(place: Place, fine_tune: Make) -> None:
    export = fine_tune(1).put(place.blobs)
    first, again = place.roll_out(export), place.roll_out(export)
    assert first.endpoint == again.endpoint
    assert again.proof.model.passed


def test_a_manifest_that_training_did_not_name_is_refused(place: Place, fine_tune: Make) -> None:
    export = fine_tune(1).put(place.blobs)
    export.manifest_sha256 = "0" * 64
    with pytest.raises(Poison, match="not the 0000"):
        place.roll_out(export)
    assert not place.holds(export)


def test_weights_with_nan_are_refused_while_chats_go_on(place: Place, fine_tune: Make) -> None:
    good, bad = fine_tune(1).put(place.blobs), fine_tune(3, float("nan")).put(place.blobs)
    endpoint = place.roll_out(good).endpoint
    done, answers = threading.Event(), []

    def chat() -> None:
        while not done.wait(0.2):
            answers.append(answer(endpoint, "hello"))

    thread = threading.Thread(target=chat)
    thread.start()
    try:
        result = place.roll_out(bad)
    finally:
        done.set()
        thread.join()
    assert not result.proof.model.passed
    assert "424" in result.proof.model.why or "log prob" in result.proof.model.why
    assert answers
    assert len(set(answers)) == 1
    place.rollout.remove(bad)
    assert not place.holds(bad)


def test_weights_that_were_exchanged_in_the_store_never_reach_a_server(place: Place, fine_tune: Make) -> None:
    export = fine_tune(1).put(place.blobs)
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        place.blobs.delete_prefix(f"{export.prefix}/{name}")
        place.blobs.put(f"{export.prefix}/{name}", b"others")
    with pytest.raises(Poison, match="has sha256"):
        place.roll_out(export)


def test_a_base_whose_server_is_not_there_is_said_to_be_so(place: Place) -> None:
    with pytest.raises(NotReady):
        place.rollout.base("other", Path("another-model") if isinstance(place, Embedded) else place.base_folder, "")
