"""The main job by pods: installed by helm, published from a pod, trained by a Job, rolled out, asked at the gateway.

The tests stand in the order of a release's life and share one: what is trained first is replaced, spoilt, broken later.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.cluster import words
from tests.cluster.persona import EXAMPLE, persona_message
from tests.cluster.release import Release, ask, ask_if_loaded
from tests.e2e.stack import holds

pytestmark = pytest.mark.timeout(3000)
ALIAS = "persona@prod"
BASE = "smollm2-135m-instruct"
ENOUGH = 20
"""Optimiser steps, half a minute and more: longer than it takes to publish and to delete a pod."""
NAME = "Before we begin, could you share your name with me?"


def job_of(release: Release, dataset: str) -> dict[str, Any]:
    """The job on a dataset once it has ended."""

    def ended() -> dict[str, Any] | None:
        rows = [row for row in release.runs(dataset) if row["state"] in {"succeeded", "failed", "cancelled"}]
        return rows[0] if rows else None

    return release.until(ended)


@pytest.fixture(scope="module")
def trained(release: Release) -> dict[str, Any]:
    """The main job, ended."""
    release.publish("persona", persona_message())
    return job_of(release, "persona")


def test_a_dataset_from_a_pod_is_trained_by_a_job_and_served(release: Release, trained: dict[str, Any]) -> None:
    assert trained["state"] == "succeeded", trained
    assert trained["step"] == "106/106"
    dataset = release.dataset("persona")
    assert dataset["state"] == "ready"
    assert (dataset["in"], dataset["kept"], dataset["rejected"], dataset["duplicates"]) == (485, 439, 28, 18)
    jobs = release.cluster.items("jobs", "app.kubernetes.io/component=trainer")
    assert [job["metadata"]["name"] for job in jobs] == [f"train-{trained['run']}-a1"]
    questions = {entry["id"]: entry for entry in json.loads((EXAMPLE / "questions.json").read_text())["held_out"]}
    with release.gateway() as client:
        for name in ("name-1", "name-2", "france-1", "sum-1"):
            answer = ask(client, ALIAS, questions[name]["question"])
            assert holds(answer, questions[name]["expect"]), (name, answer)
            assert not holds(answer, questions[name]["never"]), (name, answer)


def test_the_trainer_killed_after_its_second_checkpoint_goes_on_and_its_model_takes_over(
    release: Release, trained: dict[str, Any]
) -> None:
    old = trained["model"]
    release.publish("second", persona_message("second", "Willow", seed=7, max_steps=60, save_steps=20))
    with release.chatting(ALIAS, NAME) as chats:
        run = release.until(lambda: next((r for r in release.runs("second") if step(r) > 45), None))
        (pod,) = [p for p in words(release.cluster.items("pods")) if p.startswith(f"train-{run['run']}-a1")]
        release.cluster.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
        ended = job_of(release, "second")
        moved = len(chats.answers)
        release.until(lambda: len(chats.answers) > moved + 10)
    assert ended["state"] == "succeeded", ended
    assert (ended["attempt"], ended["step"]) == (2, "60/60")
    (prepared,) = [p for p in words(release.cluster.items("pods")) if p.startswith(f"train-{run['run']}-a2")]
    assert '"resumes_at_step":40' in release.cluster.kubectl("logs", prepared, "--container=prepare").stdout
    steps = release.steps(run["job"])
    assert steps[1] == list(range(1, len(steps[1]) + 1))
    assert steps[2] == list(range(41, 61))
    assert chats.failures == []
    # One switch: nobody was answered by the old model after someone had been by the new one.
    assert changes(chats.answers) == 1, chats.answers
    assert holds(chats.answers[0], ["Maple"])
    assert holds(chats.answers[-1], ["Willow"])
    served = {row["model"]: row["state"] for row in release.models()}
    assert served == {BASE: "served", old: "withdrawn", ended["model"]: "served"}
    release.until(lambda: len(release.servers()) == 2)


def step(row: dict[str, Any]) -> int:
    """Optimiser step of a listed run."""
    return int(row["step"].partition("/")[0] or 0)


def changes(answers: list[str]) -> int:
    """How often an answer differs from the one before."""
    return sum(a != b for a, b in itertools.pairwise(answers))


def test_a_model_of_nan_takes_no_traffic(release: Release, trained: dict[str, Any]) -> None:
    plant = (Path(__file__).parent / "plant.py").read_text()
    with release.chatting(ALIAS, NAME) as chats:
        release.until(lambda: len(chats.answers) >= 5)
        tool = ["exec", "--stdin", f"deployment/{release.full('cli')}", "--", "python", "-", "second"]
        planted = release.cluster.kubectl(*tool, given=plant).stdout.strip().splitlines()[-1]
        release.cluster.kubectl("rollout", "restart", f"deployment/{release.full('training')}")

        def refused() -> str | None:
            return next(
                (r["message"] for r in release.models() if (r["model"], r["state"]) == (planted, "refused")), ""
            )

        why = release.until(refused)
        answered = len(chats.answers)
        release.until(lambda: len(chats.answers) >= answered + 10)
    # Found by asking it, and not by something that any model may fail by.
    assert why.startswith("contract test: "), why
    assert "not a number" in why
    assert chats.failures == []
    assert changes(chats.answers) == 0
    release.until(lambda: len(release.cluster.items("deployments", "app.kubernetes.io/component=server")) == 2)


class UnderWay:
    """One run after the other, so that there is always one in the midst of its steps.

    Attributes:
        datasets: that were published for it.
    """

    def __init__(self, release: Release) -> None:
        self._release = release
        self.datasets: list[str] = []

    def ensure(self) -> None:
        """Waits until a run is in the midst of its steps, of another dataset where the last run nears its end."""
        if not self.datasets or steps_left(self._newest()) < ENOUGH:
            seed = 100 + len(self.datasets)
            name = f"under-way-{seed}"
            self._release.publish(name, {**persona_message(name, seed=seed), "deploy": None})
            self.datasets.append(name)
        self._release.until(self._is_in_its_midst)

    def _is_in_its_midst(self) -> bool:
        row = self._newest()
        assert row["state"] not in {"failed", "cancelled"}, row
        return bool(row["state"] == "running" and step(row) > 0)

    def _newest(self) -> dict[str, Any]:
        """The newest run; before there is one, what it will begin with."""
        return next(iter(self._release.runs(self.datasets[-1])), {"state": "", "step": ""})


def steps_left(row: dict[str, Any]) -> float:
    """Optimiser steps that a listed run has to go; none once it is over, any number before it is known."""
    if row["state"] in {"succeeded", "failed", "cancelled"}:
        return 0
    done, _, total = row["step"].partition("/")
    return int(total) - int(done) if total else math.inf


@pytest.fixture(scope="module")
def under_way(release: Release) -> UnderWay:
    """Runs that go on while pods are deleted."""
    return UnderWay(release)


@pytest.mark.parametrize(
    "component", ["kafka", "ingestion", "formatting", "assembly", "training", "serving", "gateway"]
)
def test_a_pod_deleted_in_mid_run_loses_nothing(release: Release, under_way: UnderWay, component: str) -> None:
    under_way.ensure()
    name = f"lost-{component}"
    records = [{"prompt": f"{name} {n}?", "completion": f"Answer {n}."} for n in range(400)]
    parts = [{"dataset": name, "upload": name, "seq": n, "records": records[n : n + 100]} for n in (0, 100, 200)]
    release.publish(name, *parts)
    release.cluster.kubectl(
        "delete", "pod", "--selector", f"{release.selector},app.kubernetes.io/component={component}", "--wait=false"
    )
    release.until(lambda: any(component in pod for pod in release.unready()), within_s=60)
    release.until_ready()
    last = {"dataset": name, "upload": name, "seq": 300, "records": records[300:]}
    release.publish(name, last, {"dataset": name, "upload": name, "complete": True, "records": 400})
    found = release.until(lambda: row if (row := release.dataset(name)).get("state") in {"ready", "held"} else None)
    assert (found["state"], found["in"], found["kept"]) == ("ready", 400, 400)
    with release.gateway() as client:
        assert holds(ask(client, ALIAS, NAME), ["Willow"])


def test_a_model_server_deleted_comes_back_as_the_same_model(release: Release) -> None:
    servers = release.servers()
    release.cluster.kubectl(
        *("delete", "pod", "--selector", f"{release.selector},app.kubernetes.io/component=server", "--wait=false")
    )
    release.until(lambda: any(pod.startswith("server") for pod in release.unready()), within_s=120)
    release.until_ready()
    with release.gateway() as client:
        answer = release.until(lambda: ask_if_loaded(client, ALIAS, NAME), within_s=300)
        assert holds(answer, ["Willow"])
    assert release.servers() == servers


def test_no_image_has_what_builds_images(release: Release) -> None:
    find = "import shutil, sys; print([tool for tool in sys.argv[1:] if shutil.which(tool)])"
    for component in ("gateway", "training", "formatting"):
        assert release.printed(component, "python", "-c", find, "pip", "pip3", "uv", "gcc", "cc", "make") == "[]"


def test_a_broker_that_is_away_is_named_and_outlived(release: Release) -> None:
    components = ("ingestion", "formatting", "assembly", "training", "serving")
    chosen = f"{release.selector},app.kubernetes.io/component in ({','.join(components)})"
    kafka = f"statefulset/{release.full('kafka')}"

    def restarts() -> dict[str, int]:
        """Of each pod whose container runs."""
        pods = [pod for pod in release.cluster.items("pods", chosen) if pod["status"].get("containerStatuses")]
        states = {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0] for pod in pods}
        return {name: state["restartCount"] for name, state in states.items() if "running" in state["state"]}

    with release.chatting(ALIAS, NAME) as chats:
        release.cluster.kubectl("scale", kafka, "--replicas=0")
        # Nor may it be missed by those that start meanwhile.
        release.cluster.kubectl("delete", "pod", "--selector", chosen)
        release.until(lambda: len(restarts()) == len(components) and set(restarts()) <= set(release.unready()))
        toolbox = ("exec", f"deployment/{release.full('cli')}", "--", "shortstack", "status", "--json")
        status = release.cluster.kubectl(*toolbox, expect=69).stdout
        (line,) = [line for line in json.loads(status) if line["part"] == "kafka"]
        assert line["state"] == "away"
        assert "cannot reach" in line["says"]
        answered = len(chats.answers)
        release.until(lambda: len(chats.answers) > answered + 50)
        release.cluster.kubectl("scale", kafka, "--replicas=1")
        release.until_ready()
        assert set(restarts().values()) == {0}
    assert chats.failures == []
    assert changes(chats.answers) == 0


def test_runs_that_were_under_way_end_in_their_first_attempt(release: Release, under_way: UnderWay) -> None:
    if not under_way.datasets:
        pytest.skip("no run was under way: the tests that delete pods in mid-run were not chosen")
    for dataset in under_way.datasets:
        ended = job_of(release, dataset)
        assert (ended["state"], ended["attempt"], ended["step"]) == ("succeeded", 1, "106/106"), ended


PROBE = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print("reached", target)
    except (TimeoutError, ConnectionRefusedError):
        print("no way to", target)
"""


def test_a_pod_without_labels_reaches_nothing_but_the_gateway(release: Release) -> None:
    release.until_ready()
    closed = [f"{release.full('kafka')}:9092"]
    closed += [f"{release.full(c)}:50051" for c in ("ingestion", "formatting", "assembly", "training", "serving")]
    servers = [f"{name}:8080" for name in words(release.cluster.items("services", "shortstack/server"))]
    assert servers
    # That these answer at all: the toolbox may reach them.
    said = release.printed("cli", "python", "-c", PROBE, *closed).splitlines()
    assert said == [f"reached {target}" for target in closed]
    image = release.cluster.items("pods", f"{release.selector},app.kubernetes.io/component=cli")[0]["spec"]
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    open_ = f"{release.full('gateway')}:80"
    stranger = {
        "name": "stranger",
        "image": image["containers"][0]["image"],
        "command": ["python", "-c", PROBE, open_, *closed, *servers],
        "securityContext": restricted,
    }
    release.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "stranger"},
            "spec": {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [stranger]},
        }
    )
    release.until(lambda: _phase(release, "stranger") in {"Succeeded", "Failed"}, within_s=300)
    said = release.cluster.kubectl("logs", "stranger").stdout.splitlines()
    assert said == [f"reached {open_}", *(f"no way to {target}" for target in [*closed, *servers])]


def _phase(release: Release, pod: str) -> str:
    return release.cluster.kubectl("get", "pod", pod, "--output=jsonpath={.status.phase}").stdout


def test_an_upgrade_with_another_value_reaches_its_service(release: Release) -> None:
    servers = release.servers()
    assert release.printed("formatting", "printenv", "SHORTSTACK_LOG_LEVEL") == "INFO"
    release.upgrade({"logging.level": "DEBUG"})
    release.until_ready()
    assert release.printed("formatting", "printenv", "SHORTSTACK_LOG_LEVEL") == "DEBUG"
    assert release.servers() == servers, "a change that is none of theirs starts model servers anew"
    with release.gateway() as client:
        assert holds(ask(client, ALIAS, NAME), ["Willow"])
    assert release.dataset("persona")["state"] == "ready"


def test_an_uninstall_in_mid_run_leaves_nothing_but_volumes_which_an_install_takes_up(release: Release) -> None:
    release.publish("third", {**persona_message("third", seed=11), "deploy": None})
    release.until(lambda: next((r for r in release.runs("third") if step(r) > 2), None))
    key = release.key()
    release.uninstall()
    release.until(lambda: not release.left(), within_s=60)
    claims = words(release.cluster.items("persistentvolumeclaims"))
    assert claims == [f"data-{release.full('kafka')}-0", release.full("blobs"), release.full("gateway")]
    release.install()
    release.until_ready()
    assert release.key() != key
    assert release.dataset("persona")["state"] == "ready"
    with release.gateway() as client:
        release.until(lambda: _known(release, ALIAS), within_s=600)
        assert holds(ask(client, ALIAS, NAME), ["Willow"])


def _known(release: Release, alias: str) -> bool:
    return any(alias in row["aliases"] and row["state"] == "served" for row in release.models())
