"""Publications of every kind, from the topic to the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
import zstandard

from shortstack.core.errors import Transient
from shortstack.declarations.recipe import RECIPES, recipe_object
from shortstack.messages.v1.dataset_pb2 import DATASET_STATE_FAILED, DATASET_STATE_READY
from shortstack.records.schema import SEGMENT_SCHEMA, read_table
from shortstack.streams.broker import Outbound
from shortstack.streams.decoding import UNREADABLE

Lines = Callable[[int], bytes]


def _pair(number: int) -> dict[str, Any]:
    return {"prompt": f"What is {number} and one?", "completion": f"It is {number + 1}."}


def _lines(count: int) -> bytes:
    return b"".join(orjson.dumps(_pair(number), option=orjson.OPT_APPEND_NEWLINE) for number in range(count))


def _tiles(stack: Any) -> bool:
    """Whether the entries tile what was announced."""
    announced = {(source.publication, source.source): source.records for source in stack.announced()}
    counts = dict.fromkeys(announced, 0)
    for entry in {(e.publication, e.source, e.first): e for e in stack.entries()}.values():
        if (entry.publication, entry.source) in counts:
            counts[entry.publication, entry.source] += entry.count
    wanted = {publication.publication for publication in stack.accepted()}
    return bool(wanted) and {publication for publication, _ in announced} == wanted and counts == announced


def test_a_pointer_goes_from_the_topic_to_segments(stack: Any) -> None:
    stack.start_formatting()
    stack.start_ingestion()
    uri = stack.source("pairs.jsonl", _lines(50) + b'{"prompt": "cut of\n' + orjson.dumps(_pair(3)) + b"\n")
    stack.publish({"dataset": "pairs", "source": {"uri": uri}, "license": "Apache-2.0", "train": {}, "deploy": {}})
    stack.until(lambda: _tiles(stack))
    (publication,) = stack.accepted()
    assert (publication.dataset, publication.attempt, publication.license) == ("pairs", 1, "Apache-2.0")
    assert [s.family for s in publication.sources] == ["prompt_completion"]
    (source,) = stack.announced()
    assert (source.items, source.used, source.rejected, source.records) == (52, 51, 1, 51)
    assert source.samples[0].startswith("pairs.jsonl line 51: not JSON")
    rejected = zstandard.ZstdDecompressor().decompressobj().decompress(stack.blobs.get(source.rejected_object))
    assert orjson.loads(rejected)["raw"] == '{"prompt": "cut of'
    (entry,) = stack.entries()
    segment = read_table(stack.blobs.get(entry.segment), SEGMENT_SCHEMA)
    assert len(segment) == entry.count == entry.kept + entry.rejected + entry.failed


def test_whole_and_parts_carry_the_same_records(stack: Any) -> None:
    stack.start_formatting()
    stack.start_ingestion()
    records = [_pair(number) for number in range(30)]
    stack.publish({"dataset": "whole", "records": records})
    stack.publish({"dataset": "parts", "upload": "u1", "seq": 20, "records": records[20:]})
    stack.publish({"dataset": "parts", "upload": "u1", "complete": True, "records": 30})
    stack.publish({"dataset": "parts", "upload": "u1", "seq": 0, "records": records[:20]})
    stack.until(lambda: {p.dataset for p in stack.accepted()} == {"whole", "parts"} and _tiles(stack))
    # Whoever finds an upload whole goes on; two may find it so at once, and say the same.
    assert len({p.publication for p in stack.accepted()}) == 2
    assert len({p.sources[0].sha256 for p in stack.accepted()}) == 1
    assert {source.records for source in stack.announced()} == {30}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"{", "not JSON"),
        ({"dataset": "x", "source": "a.jsonl", "recipy": "default"}, 'Did you mean "recipe"?'),
        ({"dataset": "x", "source": "a.jsonl", "recipe": "verbatin"}, 'Did you mean "verbatim"?'),
        ({"dataset": "x", "source": "a.jsonl", "prompt_format": "chatlm"}, 'Did you mean "chatml"?'),
        ({"dataset": "x", "source": "a.jsonl", "train": {"learning_rat": 1}}, 'Did you mean "learning_rate"?'),
        ({"dataset": "x", "source": "a.jsonl", "train": {"base_model": "smollm2"}}, "smollm2-135m-instruct"),
        ({"dataset": "x", "source": "absent.jsonl"}, "there is no file"),
        ({"dataset": "x", "source": "/etc/passwd"}, "outside of the declared roots"),
        ({"dataset": "x", "source": "../secret.jsonl"}, '".." is not followed'),
        ({"dataset": "x", "source": "s3://bucket/key"}, "closed here"),
        ({"dataset": "x", "source": "blob://publications/default/other"}, "is not one that default may publish"),
    ],
)
def test_a_wrong_message_is_set_aside_with_its_remedy_and_the_next_one_flows(
    stack: Any, message: dict[str, Any] | bytes, expected: str
) -> None:
    stack.start_ingestion()
    stack.source("a.jsonl", _lines(2))
    stack.publish(message)
    stack.publish({"dataset": "x", "records": [_pair(1)]})
    stack.until(lambda: len(stack.announced()) == 1 and len(stack.dead()) == 1)
    assert expected in stack.dead()[0]["dlq-message"]


def test_a_source_that_breaks_off_fails_its_publication_by_name(stack: Any) -> None:
    stack.start_ingestion()
    stack.source("broken.json", b'[{"prompt": "a", "completion": "b"}, {"prompt"')
    stack.publish({"dataset": "broken", "source": "broken.json"})
    stack.until(lambda: bool(stack.failed()))
    (failed,) = stack.failed()
    assert failed.code == "invalid_json"
    assert "broken.json" in failed.error
    assert "JSONL" in failed.remedy
    assert not stack.dead()


def test_verbatim_fails_at_the_first_malformed_line(stack: Any) -> None:
    stack.start_ingestion()
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]}
    stack.source("chat.jsonl", orjson.dumps(good) + b"\n" + orjson.dumps(bad) + b"\n")
    stack.publish({"dataset": "chat", "source": "chat.jsonl", "recipe": "verbatim"})
    stack.until(lambda: bool(stack.failed()))
    (failed,) = stack.failed()
    assert failed.code == "invalid_training_file"
    assert "chat.jsonl line 2" in failed.error
    assert 'Did you mean "assistant"?' in failed.error


def test_recipes_that_differ_in_their_name_alone_are_one(stack: Any) -> None:
    """A store of before holds a recipe with the name that it had; that must not stop whoever names it otherwise."""
    old = RECIPES["default"]
    stack.blobs.put(recipe_object(old.digest()), old.json_bytes())
    stack.start_formatting()
    stack.start_ingestion()
    verbatim = RECIPES["verbatim"].model_dump(mode="json", exclude={"name"})
    for name, recipe in [("a", "verbatim"), ("b", verbatim), ("c", verbatim | {"name": "mine"})]:
        stack.publish({"dataset": name, "records": [_pair(1)], "recipe": recipe})
    stack.publish({"dataset": "d", "records": [_pair(1)], "recipe": old.model_dump(mode="json") | {"name": "mine"}})
    stack.until(lambda: bool(stack.dead()) or (len(stack.accepted()) == 4 and _tiles(stack)))
    assert not stack.dead()
    assert not any(entry.error for entry in stack.entries())
    names = {publication.dataset: orjson.loads(publication.recipe_json)["name"] for publication in stack.accepted()}
    assert names == {"a": "verbatim", "b": "inline", "c": "mine", "d": "mine"}


def test_a_row_that_misspells_its_own_prompt_format_is_named_and_the_others_keep_theirs(stack: Any) -> None:
    """Also where a retry reads the sources again: other records would be other batches."""
    rows = [{"instruction": "hi", "output": "yo", "prompt_type": name} for name in ("human_bot", "humen_bot")]
    stack.start_ingestion()
    message = {"dataset": "own", "records": [*rows, {"instruction": "hi", "output": "yo"}], "prompt_format": "chatml"}
    stack.publish(message)
    stack.until(lambda: len(stack.announced()) == 1)
    stack.set_state(stack.accepted()[0], DATASET_STATE_FAILED)
    stack.publish({"dataset": "own", "retry": stack.accepted()[0].publication})
    stack.until(lambda: len(stack.announced()) == 2)
    for source in stack.announced():
        assert (source.used, source.rejected) == (2, 1)
        assert source.samples[0].startswith('records.jsonl line 2: names the prompt format "humen_bot"')
    batches = [read_table(raw.value or b"") for raw in stack.broker.messages("records.raw")]
    assert [batch["prompt_format"].to_pylist() for batch in batches] == [["human_bot", None]] * 2


def test_reading_the_topic_again_repeats_no_finished_publication(stack: Any) -> None:
    stack.start_formatting()
    stack.start_ingestion()
    stack.publish({"dataset": "once", "records": [_pair(1)]})
    stack.until(lambda: _tiles(stack))
    (publication,) = stack.accepted()
    stack.set_state(publication, DATASET_STATE_READY)
    stack.stop()
    stack.broker.reset("ingestion")
    before = len(stack.broker.messages("records.raw")), len(stack.events())
    stack.start_ingestion()
    stack.publish({"dataset": "other", "records": [_pair(2)]})
    stack.until(lambda: len(stack.announced()) == 2)
    assert len(stack.broker.messages("records.raw")) == before[0] + 1
    assert {p.dataset for p in stack.accepted()[1:]} == {"other"}


def test_a_repeat_of_something_failed_opens_the_next_attempt(stack: Any) -> None:
    stack.start_ingestion()
    message = {"dataset": "again", "records": [_pair(1)]}
    stack.publish(message)
    stack.until(lambda: len(stack.announced()) == 1)
    stack.set_state(stack.accepted()[0], DATASET_STATE_FAILED)
    stack.publish(message)
    stack.until(lambda: len(stack.announced()) == 2)
    first, second = stack.accepted()
    assert second.publication == first.publication
    assert (first.attempt, second.attempt) == (1, 2)


def test_a_redelivery_gives_byte_identical_batches(stack: Any) -> None:
    stack.start_ingestion()
    stack.source("pairs.jsonl", _lines(12_000))
    stack.publish({"dataset": "pairs", "source": "pairs.jsonl"})
    stack.until(lambda: len(stack.announced()) == 1)
    stack.stop()
    first = {m.key: m.value for m in stack.broker.messages("records.raw")}
    stack.broker.reset("ingestion")
    stack.start_ingestion()
    stack.until(lambda: len(stack.announced()) == 2)
    again = stack.broker.messages("records.raw")
    assert len(first) > 2
    assert len(again) == 2 * len(first)
    assert all(first[message.key] == message.value for message in again)


def test_a_retry_that_is_tried_twice_still_opens_the_next_attempt(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is transient is tried again in place; the second try must not take the first for a finished one."""
    stack.start_ingestion()
    stack.publish({"dataset": "again", "records": [_pair(1)]})
    stack.until(lambda: len(stack.announced()) == 1)
    (first,) = stack.accepted()
    stack.set_state(first, DATASET_STATE_FAILED)
    put, tries = stack.parts.worker._publisher.blobs.put, []

    def put_later(key: str, data: bytes) -> None:
        tries.append(key)
        if len(tries) == 1:
            raise Transient("the object store is away")
        put(key, data)

    monkeypatch.setattr(stack.parts.worker._publisher.blobs, "put", put_later)
    stack.publish({"dataset": "again", "retry": first.publication})
    stack.until(lambda: len(stack.announced()) == 2)
    assert [publication.attempt for publication in stack.accepted()] == [1, 2]


def test_an_upload_keeps_the_time_of_its_closing_whichever_part_completes_it(stack: Any) -> None:
    """Else the closing message, read again, is newer than the publication that it opened, and opens another."""
    stack.start_ingestion()
    records = [_pair(number) for number in range(4)]
    stack.publish({"dataset": "up", "upload": "u1", "complete": True, "records": 4})
    stack.until(lambda: any(event.HasField("waiting") for event in stack.events()))
    stack.publish({"dataset": "up", "upload": "u1", "seq": 2, "records": records[2:]})
    stack.publish({"dataset": "up", "upload": "u1", "seq": 0, "records": records[:2]})
    # Parts are handled side by side: both may find the upload whole, and then both announce the same publication.
    stack.until(lambda: bool(stack.announced()))
    closing = next(m for m in stack.broker.messages("datasets.ingest") if b"complete" in (m.value or b""))
    accepted = {(p.publication, p.attempt, p.accepted_at.ToMilliseconds()) for p in stack.accepted()}
    assert [at for _, _, at in accepted] == [closing.timestamp_ms]


def test_what_cannot_be_unpacked_is_set_aside_by_its_own_reason(stack: Any) -> None:
    stack.start_ingestion()
    headers = ((UNREADABLE, b"batch unpacks to more than 67108864 bytes"),)
    stack.broker.producer().send(Outbound("datasets.ingest", b"k", None, headers))
    stack.until(lambda: len(stack.dead()) == 1)
    assert "unpacks to more than" in stack.dead()[0]["dlq-message"]


def test_garbage_on_the_ledger_does_not_stop_ingestion(stack: Any) -> None:
    parts = stack.start_ingestion()
    stack.broker.producer().send(Outbound("records.formatted", b"k", b"\xff garbage"))
    stack.publish({"dataset": "one", "records": [_pair(1)]})
    stack.until(lambda: len(stack.announced()) == 1)
    stack.start_formatting()
    stack.until(lambda: parts.backlog.under_way == 0)
