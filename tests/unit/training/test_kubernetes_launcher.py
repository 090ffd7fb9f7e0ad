"""Attempts as Jobs: what is made, what is said while it cannot start, and how each way to end is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.kubernetes import FakeKubernetes

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Fatal, Transient
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.training.kubernetes_launcher import KubernetesLauncher
from shortstack.training.launcher import STOPPED, AttemptOrder, AttemptPhase, AttemptStatus
from shortstack.training.pod.objects import order_key, say

RUN = "0123456789abcdef" * 2
JOB = f"train-{RUN[:12]}-a1"
TEMPLATE = """
apiVersion: batch/v1
kind: Job
metadata:
  name: template
  labels: {app.kubernetes.io/instance: demo, app.kubernetes.io/component: trainer}
spec:
  completionMode: Indexed
  backoffLimit: 0
  template:
    metadata:
      labels: {app.kubernetes.io/instance: demo, app.kubernetes.io/component: trainer}
    spec:
      restartPolicy: Never
      initContainers: [{name: prepare, env: [{name: SHORTSTACK_RUN, value: template}]}]
      containers:
      - {name: trainer, resources: {limits: {memory: 8Gi}}}
      - {name: agent, env: [{name: SHORTSTACK_STORAGE_URL, value: "file:///blobs"}]}
"""


@dataclass
class Stage:
    """A launcher on a fake cluster, with a clock that moves on at every look."""

    kubernetes: FakeKubernetes
    blobs: MemoryBlobStore
    clock: FakeClock
    template: Path

    def launcher(self, owner: str = "demo-owner") -> KubernetesLauncher:
        return KubernetesLauncher(
            self.kubernetes.cluster(owner),
            self.blobs,
            self.template,
            storage_url="s3://bucket/stack/",
            clock=self.clock,
        )

    def look(self, launcher: KubernetesLauncher, attempt: int = 1) -> AttemptStatus:
        self.clock.advance(2)
        return launcher.status(RUN, attempt)

    def say(self, **word: Any) -> None:
        say(self.blobs, RUN, 1, word)

    @property
    def pod(self) -> str:
        return self.kubernetes.pod_of(JOB)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    kubernetes = FakeKubernetes()
    kubernetes.add("configmaps", "demo-owner")
    template = tmp_path / "job.yaml"
    template.write_text(TEMPLATE)
    return Stage(kubernetes, MemoryBlobStore(), FakeClock(), template)


@pytest.fixture
def launcher(stage: Stage) -> KubernetesLauncher:
    """A launcher with attempt 1 under way."""
    made = stage.launcher()
    made.launch(order())
    return made


def order(attempt: int = 1) -> AttemptOrder:
    return AttemptOrder(RUN, attempt, "manifest.json", 1, {"seed": 42})


def test_a_job_is_the_template_with_name_labels_owner_and_two_variables(
    stage: Stage, launcher: KubernetesLauncher
) -> None:
    job = stage.kubernetes.get("jobs", JOB)
    labels = {"shortstack/run": RUN, "shortstack/attempt": "1"}
    assert job["metadata"]["labels"].items() >= {**labels, "app.kubernetes.io/instance": "demo"}.items()
    assert job["metadata"]["ownerReferences"][0]["name"] == "demo-owner"
    assert (job["spec"]["completionMode"], job["spec"]["backoffLimit"]) == ("Indexed", 0)
    pod = job["spec"]["template"]
    own = {"app.kubernetes.io/instance": "demo", "app.kubernetes.io/component": "trainer"}
    assert pod["metadata"]["labels"] == {**own, **labels}
    told = [{"name": "SHORTSTACK_RUN", "value": RUN}, {"name": "SHORTSTACK_ATTEMPT", "value": "1"}]
    assert pod["spec"]["initContainers"][0]["env"] == told
    trainer, agent = pod["spec"]["containers"]
    assert trainer == {"name": "trainer", "resources": {"limits": {"memory": "8Gi"}}, "env": told}
    assert agent["env"] == [{"name": "SHORTSTACK_STORAGE_URL", "value": "file:///blobs"}, *told]
    assert AttemptOrder.from_json(stage.blobs.get(order_key(RUN, 1))) == order()
    assert launcher.place(RUN) == f"s3://bucket/stack/runs/{RUN}"


@pytest.mark.parametrize(
    ("hold", "words"),
    [
        (
            lambda k, pod: k.unschedulable(pod, "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            ["cannot be scheduled: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu", "Make room"],
        ),
        (
            lambda k, pod: k.held_up(pod, "trainer", "ImagePullBackOff", 'Back-off pulling image "training:9"'),
            ['ImagePullBackOff: Back-off pulling image "training:9"', "pull secret"],
        ),
        (
            lambda k, pod: k.held_up(pod, "prepare", "CreateContainerConfigError", 'secret "s3" not found'),
            ['container prepare of pod train-0123456789ab-a1-3: CreateContainerConfigError: secret "s3" not found'],
        ),
    ],
)
def test_what_keeps_a_pod_from_starting_is_told_until_it_starts(
    stage: Stage, launcher: KubernetesLauncher, hold: Callable[[FakeKubernetes, str], None], words: list[str]
) -> None:
    assert stage.look(launcher) == AttemptStatus(AttemptPhase.RUNNING)
    hold(stage.kubernetes, stage.pod)
    status = stage.look(launcher)
    assert status.phase is AttemptPhase.RUNNING
    assert [word for word in words if word not in status.waiting] == []
    stage.kubernetes.run(stage.pod)
    assert stage.look(launcher) == AttemptStatus(AttemptPhase.RUNNING)


def test_a_job_without_a_pod_is_told_after_a_while(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.remove_pod(stage.pod)
    stage.kubernetes.patch("jobs", JOB, {"status": {"conditions": None}})
    assert stage.look(launcher) == AttemptStatus(AttemptPhase.RUNNING)
    stage.clock.advance(20)
    assert f"kubectl describe job {JOB}" in stage.look(launcher).waiting
    stage.kubernetes.warn(JOB, "FailedCreate", 'pods "train" is forbidden: exceeded quota: gpus')
    assert "FailedCreate: pods" in stage.look(launcher).waiting


def test_a_volume_that_cannot_be_mounted_is_told_by_its_event(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.warn(stage.pod, "FailedMount", "an older one")
    stage.kubernetes.warn(stage.pod, "FailedMount", 'configmap "ca" not found')
    assert stage.look(launcher).waiting == ""
    stage.clock.advance(60)
    assert 'does not start: FailedMount: configmap "ca" not found' in stage.look(launcher).waiting
    stage.kubernetes.run(stage.pod)
    assert stage.look(launcher).waiting == ""


@pytest.mark.parametrize("code", [403, 422])
def test_a_job_that_is_refused_waits_with_the_servers_words_and_is_tried_again(stage: Stage, code: int) -> None:
    launcher = stage.launcher()
    stage.kubernetes.refusals["jobs"] = (code, "exceeded quota: jobs")
    launcher.launch(order())
    status = stage.look(launcher)
    assert status.phase is AttemptPhase.ABSENT
    assert "exceeded quota: jobs" in status.waiting
    asked = len(stage.kubernetes.requests)
    launcher.launch(order())
    assert stage.kubernetes.requests[asked:] == []  # not at every turn of the controller
    stage.kubernetes.refusals.clear()
    stage.clock.advance(30)
    launcher.launch(order())
    assert stage.look(launcher).phase is AttemptPhase.RUNNING


def test_a_template_that_is_missing_is_waited_for(stage: Stage) -> None:
    launcher = stage.launcher()
    assert stage.look(launcher).phase is AttemptPhase.ABSENT
    text = stage.template.read_text()
    stage.template.unlink()
    launcher.launch(order())
    assert "job.yaml: cannot read the template" in stage.look(launcher).waiting
    with pytest.raises(Transient, match=r"job\.yaml: cannot read the template"):
        stage.look(stage.launcher())  # one that never saw it does not know which Jobs are its own
    stage.template.write_text(text)
    stage.clock.advance(30)
    launcher.launch(order())
    assert stage.look(launcher) == AttemptStatus(AttemptPhase.RUNNING)


def test_an_api_server_that_is_away_is_transient_and_costs_no_attempt(
    stage: Stage, launcher: KubernetesLauncher
) -> None:
    stage.kubernetes.away = True
    with pytest.raises(Transient, match="does not answer"):
        stage.look(launcher)
    with pytest.raises(Transient, match="does not answer"):
        launcher.launch(order(2))
    stage.kubernetes.away = False
    assert stage.look(launcher).phase is AttemptPhase.RUNNING
    assert stage.look(launcher, 2).phase is AttemptPhase.ABSENT


def test_a_full_volume_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = stage.launcher()
    with monkeypatch.context() as full:

        def put(key: str, data: bytes) -> None:
            raise Fatal("cannot write: No space left on device", where="/blobs", remedy="Free space there.")

        full.setattr(stage.blobs, "put", put)
        launcher.launch(order())
    status = stage.look(launcher)
    assert status.phase is AttemptPhase.ABSENT
    assert "No space left on device. Free space there." in status.waiting
    stage.clock.advance(30)
    launcher.launch(order())
    assert stage.look(launcher) == AttemptStatus(AttemptPhase.RUNNING)


def test_a_crash_between_job_and_order_is_mended_by_launching_again(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.blobs.delete_prefix(order_key(RUN, 1))
    again = stage.launcher()
    assert stage.look(again).phase is AttemptPhase.ABSENT
    again.launch(order())
    assert stage.look(again).phase is AttemptPhase.RUNNING
    assert len(stage.kubernetes.all("jobs")) == 1


def test_a_contended_quota_is_no_job_that_is_there(stage: Stage) -> None:
    words = 'Operation cannot be fulfilled on resourcequotas "quota": the object has been modified'
    stage.kubernetes.refusals["jobs"] = (409, words, "Conflict")
    launcher = stage.launcher()
    with pytest.raises(Transient, match="cannot be fulfilled"):
        launcher.launch(order())
    assert stage.look(launcher).phase is AttemptPhase.ABSENT
    stage.kubernetes.refusals.clear()
    launcher.launch(order())
    assert stage.look(launcher).phase is AttemptPhase.RUNNING


def test_a_job_that_went_while_it_was_made_is_not_started(stage: Stage) -> None:
    stage.kubernetes.refusals["jobs"] = (409, "already exists", "AlreadyExists")
    launcher = stage.launcher()
    with pytest.raises(Transient, match="taken a moment ago"):
        launcher.launch(order())
    assert stage.look(launcher).phase is AttemptPhase.ABSENT


@pytest.mark.parametrize("reason", ["UnexpectedAdmissionError", "OutOfcpu"])
def test_a_pod_that_its_node_rejects_never_began(stage: Stage, launcher: KubernetesLauncher, reason: str) -> None:
    stage.kubernetes.end_pod(stage.pod, "Failed", reason=reason, message="the node has no room")
    status = stage.look(launcher)
    assert (status.phase, status.began) == (AttemptPhase.LOST, False)
    assert f"{reason}: the node has no room" in status.message


def test_a_node_under_pressure_that_rejects_a_pod_is_no_beginning(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.end_pod(stage.pod, "Failed", reason="Evicted", message="The node had condition: [DiskPressure]. ")
    assert not stage.look(launcher).began


def test_a_pod_evicted_while_it_prepares_counts(stage: Stage, launcher: KubernetesLauncher) -> None:
    running = [{"name": "prepare", "state": {"running": {}}}]
    waiting = [{"name": name, "state": {"waiting": {"reason": "PodInitializing"}}} for name in ("trainer", "agent")]
    status = {"initContainerStatuses": running, "containerStatuses": waiting}
    words = 'Usage of EmptyDir volume "work" exceeds the limit "20Gi"'
    stage.kubernetes.end_pod(stage.pod, "Failed", reason="Evicted", message=words, **status)
    found = stage.look(launcher)
    assert (found.phase, found.began) == (AttemptPhase.LOST, True)
    assert words in found.message


def test_a_preparation_killed_for_its_memory_counts(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.end_container(stage.pod, "prepare", 137, reason="OOMKilled")
    found = stage.look(launcher)
    assert (found.phase, found.began) == (AttemptPhase.LOST, True)
    assert "container prepare ended (OOMKilled, exit code 137): it needed more memory" in found.message


def test_a_trainer_that_cannot_be_started_never_began_and_nobody_waits_for_it(
    stage: Stage, launcher: KubernetesLauncher
) -> None:
    stage.kubernetes.run(stage.pod)
    stage.kubernetes.end_container(stage.pod, "trainer", 128, reason="StartError", message="exec: no such file")
    status = stage.look(launcher)
    assert (status.phase, status.began) == (AttemptPhase.LOST, False)
    assert "exec: no such file" in status.message
    assert stage.kubernetes.all("jobs") == []


def test_a_trainer_that_ran_began(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.run(stage.pod)
    stage.kubernetes.end_container(stage.pod, "agent", 137, reason="OOMKilled")
    status = stage.look(launcher)
    assert (status.phase, status.began) == (AttemptPhase.LOST, True)


def test_another_releases_job_of_that_name_is_not_adopted(stage: Stage) -> None:
    labels = {"app.kubernetes.io/instance": "other"}
    stage.kubernetes.add("jobs", JOB, metadata={"labels": labels}, spec={"template": {"metadata": {}, "spec": {}}})
    launcher = stage.launcher()
    launcher.launch(order())
    status = stage.look(launcher)
    assert status.phase is AttemptPhase.ABSENT
    assert "belongs to release other" in status.waiting


@pytest.mark.parametrize("own", ["instance: second", "instance: demo, app.kubernetes.io/name: teamb"])
def test_another_releases_attempts_are_neither_followed_nor_cancelled(stage: Stage, tmp_path: Path, own: str) -> None:
    other = stage.launcher()
    other.launch(order())
    stage.kubernetes.run(stage.pod)
    assert stage.look(other).phase is AttemptPhase.RUNNING
    theirs = tmp_path / "other.yaml"
    theirs.write_text(TEMPLATE.replace("instance: demo", own))
    second = Stage(stage.kubernetes, MemoryBlobStore(), stage.clock, theirs)
    launcher = second.launcher()
    assert second.look(launcher).phase is AttemptPhase.ABSENT
    launcher.launch(order())
    assert "belongs to release demo" in second.look(launcher).waiting
    launcher.cancel(RUN, 1)
    assert second.look(launcher).phase is AttemptPhase.ABSENT
    assert "deletionTimestamp" not in stage.kubernetes.get("jobs", JOB)["metadata"]
    assert stage.look(other).phase is AttemptPhase.RUNNING


def test_a_job_deleted_by_hand_is_lost_and_the_next_attempt_starts(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.run(stage.pod)
    stage.kubernetes.delete("jobs", JOB)
    status = stage.look(launcher)
    assert (status.phase, status.message) == (AttemptPhase.LOST, f"its Job {JOB} is gone without a word")
    launcher.launch(order())  # what was started once is not started again under its name
    assert stage.kubernetes.all("jobs") == []
    launcher.launch(order(2))
    assert stage.look(launcher, 2).phase is AttemptPhase.RUNNING


def test_a_pod_deleted_by_hand_has_its_grace_period_and_its_last_word(
    stage: Stage, launcher: KubernetesLauncher
) -> None:
    stage.kubernetes.run(stage.pod)
    stage.kubernetes.pods_linger = True
    stage.kubernetes.delete("pods", stage.pod)
    assert stage.look(launcher).phase is AttemptPhase.RUNNING
    stage.say(exit_code=1, code=STOPPED, message="asked to stop")
    assert (stage.look(launcher).phase, stage.look(launcher).code) == (AttemptPhase.FAILED, STOPPED)


def test_an_eviction_is_lost_with_its_reason(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.run(stage.pod)
    stage.kubernetes.end_pod(stage.pod, "Failed", reason="Evicted", message="low on ephemeral-storage")
    status = stage.look(launcher)
    assert status.phase is AttemptPhase.LOST
    assert "Evicted: low on ephemeral-storage" in status.message


def test_a_preparation_that_failed_without_a_word_is_lost_with_its_last_line(
    stage: Stage, launcher: KubernetesLauncher
) -> None:
    stage.kubernetes.end_container(stage.pod, "prepare", 75, message="error: object store: connection refused")
    status = stage.look(launcher)
    assert status.phase is AttemptPhase.LOST
    assert status.message.endswith("error: object store: connection refused")
    assert not status.began


def test_a_trainer_killed_for_its_memory_is_told_so_once_the_kubelet_knows(
    stage: Stage, launcher: KubernetesLauncher
) -> None:
    stage.kubernetes.run(stage.pod)
    stage.say(exit_code=1, code="trainer_died", message="the trainer was killed and left no word; see trainer.log")
    assert stage.look(launcher).phase is AttemptPhase.RUNNING
    stage.kubernetes.end_container(stage.pod, "trainer", 137, "OOMKilled")
    status = stage.look(launcher)
    assert (status.phase, status.code, status.final) == (AttemptPhase.FAILED, "out_of_memory", False)
    assert "more memory than its limit" in status.message
    assert "micro_batch_size" in status.remedy


def test_a_trainer_without_its_agent_is_ended(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.run(stage.pod)
    stage.kubernetes.end_container(stage.pod, "agent", 137, "OOMKilled")
    status = stage.look(launcher)
    assert status.phase is AttemptPhase.LOST
    assert "container agent ended (OOMKilled, exit code 137): it needed more memory" in status.message
    assert stage.kubernetes.all("jobs") == []


def test_cancelled_is_told_when_the_pods_are_gone(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.run(stage.pod)
    stage.kubernetes.pods_linger = True
    pod = stage.pod
    stage.look(launcher)
    launcher.cancel(RUN, 1)
    launcher.cancel(RUN, 1)
    assert stage.look(launcher).phase is AttemptPhase.RUNNING
    stage.say(exit_code=1, code=STOPPED, message="asked to stop")
    assert stage.look(launcher).phase is AttemptPhase.RUNNING
    assert stage.look(stage.launcher()).phase is AttemptPhase.RUNNING  # a controller that comes back waits as well
    stage.clock.advance(1e10)
    assert "kubectl delete pod" in stage.look(launcher).waiting
    stage.kubernetes.remove_pod(pod)
    assert (stage.look(launcher).phase, stage.look(launcher).code) == (AttemptPhase.FAILED, STOPPED)
    assert stage.kubernetes.requests.count(f"DELETE jobs/{JOB}") == 1


def test_a_pod_that_never_started_is_cancelled_without_a_word(stage: Stage, launcher: KubernetesLauncher) -> None:
    stage.kubernetes.unschedulable(stage.pod, "no node")
    stage.look(launcher)
    launcher.cancel(RUN, 1)
    assert (stage.look(launcher).phase, stage.look(launcher).code) == (AttemptPhase.FAILED, STOPPED)


def test_many_looks_ask_the_api_server_little(stage: Stage, launcher: KubernetesLauncher) -> None:
    launcher.launch(order(2))
    stage.look(launcher)
    asked = len(stage.kubernetes.requests)
    for _ in range(100):
        launcher.status(RUN, 1)
        launcher.status(RUN, 2)
    assert len(stage.kubernetes.requests) == asked


def test_only_stored_checkpoints_go_when_a_run_is_over(stage: Stage, launcher: KubernetesLauncher) -> None:
    for key in ("stored/1.json", "checkpoints/10.a1/checkpoint/model", "attempt-1/loss.png"):
        stage.blobs.put(f"runs/{RUN}/{key}", b"x")
    launcher.forget(RUN)
    launcher.forget(RUN)
    assert stage.blobs.keys() == [f"runs/{RUN}/attempt-1.order.json", f"runs/{RUN}/attempt-1/loss.png"]
