"""Both services' gRPC APIs, over a real channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import orjson
import pytest

from shortstack.core.errors import Forbidden, Invalid, NotFound
from shortstack.core.grpc import GrpcServer, channel, error_from_rpc
from shortstack.core.health import Health
from shortstack.formatting.grpc_service import FormattingServicer
from shortstack.formatting.v1 import formatting_pb2 as formatting
from shortstack.formatting.v1.formatting_pb2_grpc import (
    FormattingServiceStub,
    add_FormattingServiceServicer_to_server,
)
from shortstack.ingestion.v1 import ingestion_pb2 as ingestion
from shortstack.ingestion.v1.ingestion_pb2_grpc import (
    IngestionServiceStub,
    add_IngestionServiceServicer_to_server,
)
from shortstack.messages.v1.dataset_pb2 import DATASET_STATE_READY, Publication
from shortstack.prompts.formats import PromptFormats

PAIRS = [{"prompt": "q", "completion": "a"}, {"prompt": "p"}, {"prompt": "q2", "completion": "a2"}]


@pytest.fixture
def address(stack: Any) -> Iterator[str]:
    """Where both APIs listen."""
    parts = stack.start_ingestion()
    servicers = [
        (add_IngestionServiceServicer_to_server, parts.servicer),
        (add_FormattingServiceServicer_to_server, FormattingServicer(PromptFormats.builtin())),
    ]
    server = GrpcServer("127.0.0.1", 0, servicers, Health(60, stack.clock), [], stack.telemetry)
    server.start()
    yield f"127.0.0.1:{server.port}"
    server.stop(5)


def test_a_dataset_is_published_found_listed_and_watched(stack: Any, address: str) -> None:
    with channel(address) as link:
        api = IngestionServiceStub(link)
        message = orjson.dumps({"dataset": "pairs", "records": PAIRS})
        answer = api.PublishDataset(ingestion.PublishDatasetRequest(request_json=message))
        assert (answer.owner, answer.dataset, answer.topic) == ("default", "pairs", "datasets.ingest")
        stack.until(lambda: bool(stack.announced()))
        (publication,) = stack.accepted()
        stack.set_state(publication, DATASET_STATE_READY)
        for name in ("pairs", publication.publication, publication.publication[:12]):
            found = api.GetDataset(ingestion.GetDatasetRequest(dataset=name))
            assert found.dataset.state == DATASET_STATE_READY
        listed = api.ListDatasets(ingestion.ListDatasetsRequest()).datasets
        assert [snapshot.publication.dataset for snapshot in listed] == ["pairs"]
        watching = api.WatchDataset(ingestion.WatchDatasetRequest(dataset="pairs"))
        assert next(watching).dataset.publication.publication == publication.publication
        watching.cancel()
        assert not api.ListDatasets(ingestion.ListDatasetsRequest(owner="other")).datasets
        later = Publication(publication="f" * 32, attempt=1, owner="default", dataset="pairs")
        later.accepted_at.seconds = publication.accepted_at.seconds + 1
        stack.set_state(later, DATASET_STATE_READY)
        for name, ids in {"": [later], "pairs": [publication, later], "pair": []}.items():
            listed = api.ListDatasets(ingestion.ListDatasetsRequest(dataset=name)).datasets
            assert [found.publication.publication for found in listed] == [one.publication for one in ids]


@pytest.mark.parametrize(
    ("request_json", "kind", "param"),
    [
        ({"dataset": "x", "source": "a", "licence": "MIT"}, Invalid, "licence"),
        ({"dataset": "x", "source": "/etc/passwd"}, Forbidden, "source.uri"),
        ({"dataset": "x", "source": "absent.jsonl"}, NotFound, "source.uri"),
        ({"dataset": "x", "records": PAIRS, "recipe": "nope"}, Invalid, "recipe"),
    ],
)
def test_a_wrong_request_is_refused_before_it_is_published(
    stack: Any, address: str, request_json: dict[str, Any], kind: type[Exception], param: str
) -> None:
    with channel(address) as link, pytest.raises(grpc.RpcError) as refused:
        IngestionServiceStub(link).PublishDataset(
            ingestion.PublishDatasetRequest(request_json=orjson.dumps(request_json))
        )
    error = error_from_rpc(refused.value)
    assert type(error) is kind
    assert error.param == param
    assert not stack.broker.messages("datasets.ingest")


def test_an_unknown_dataset_is_not_found_with_the_nearest_name(stack: Any, address: str) -> None:
    with channel(address) as link:
        api = IngestionServiceStub(link)
        with pytest.raises(grpc.RpcError) as missing:
            api.GetDataset(ingestion.GetDatasetRequest(dataset="pears"))
    assert type(error_from_rpc(missing.value)) is NotFound


def test_a_preview_shows_records_and_what_is_malformed_and_stores_nothing(stack: Any, address: str) -> None:
    stack.source("pairs.jsonl", b"\n".join(orjson.dumps(pair) for pair in PAIRS))
    with channel(address) as link:
        message = orjson.dumps({"dataset": "x", "source": "pairs.jsonl"})
        preview = IngestionServiceStub(link).PreviewSource(
            ingestion.PreviewSourceRequest(request_json=message, limit=1)
        )
    assert (preview.file_format, preview.family) == ("jsonl", "prompt_completion")
    (record,) = [orjson.loads(text) for text in preview.records_json]
    assert [message["content"] for message in record["messages"]] == ["q", "a"]
    (malformed,) = preview.malformed
    assert malformed.startswith("pairs.jsonl line 2: has no prompt and completion")
    assert not (stack.folder / "blobs").exists()
    assert not list((stack.folder / "var" / "ingestion").iterdir())


def test_formats_are_listed_rendered_and_recipes_tried(address: str) -> None:
    messages = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]'
    with channel(address) as link:
        api = FormattingServiceStub(link)
        names = [one.name for one in api.ListPromptFormats(formatting.ListPromptFormatsRequest()).formats]
        assert "chatml" in names
        rendered = api.RenderConversation(
            formatting.RenderConversationRequest(prompt_format="chatml", messages_json=messages, training=True)
        )
        assert "Hello." in rendered.text
        refusal = (
            '{"messages": [{"role":"user","content":"q"},{"role":"assistant","content":"I cannot help with that."}]}'
        )
        answer = api.PreviewRecipe(
            formatting.PreviewRecipeRequest(
                recipe_yaml="steps: [{step: refusal}]", records_json=[f'{{"messages": {messages}}}', refusal]
            )
        )
        assert [(one.verdict, one.reason) for one in answer.verdicts] == [("kept", ""), ("rejected", "refusal")]
        with pytest.raises(grpc.RpcError) as refused:
            api.PreviewRecipe(formatting.PreviewRecipeRequest(recipe_yaml="steps: [{step: refusals}]"))
        assert "refusal" in error_from_rpc(refused.value).remedy
