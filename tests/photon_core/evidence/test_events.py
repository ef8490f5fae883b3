"""The log of events: one list of kinds, sentences made of facts, and what a step that starts again replaces."""

import json
import pickle
import threading
from dataclasses import asdict
from string import Formatter

import pytest

from photon_core.evidence.events import UNKEPT, Event, Fact, Kind, Log, fact_of, incidents


def test_every_kind_is_defined_once_and_its_sentence_needs_no_more_than_its_fields() -> None:
    labels = [kind.label for kind in Kind]
    assert len(set(labels)) == len(labels) == len(Kind.__members__)
    for kind in Kind:
        named = {name for _, name, _, _ in Formatter().parse(kind.sentence) if name}
        assert named <= kind.fields | {"name", "where", "state_of", "watched", "member", "round"}, kind


def test_a_fact_has_the_fields_of_its_kind() -> None:
    for data in ({}, {"seconds": 1.0, "color": "red"}):
        with pytest.raises(TypeError, match=r"server.silent has \['seconds'\], not"):
            Fact(Kind.SERVER_SILENT, data)


def test_an_event_has_its_place_and_is_json() -> None:
    log = Log("run", "site:a").at(3, "a", 2)
    event = log.append(Kind.STEP_RESTARTED, step="upload", count=2)
    assert str(event) == "the upload was started 2 times"
    place = (event.actor, event.run, event.round, event.member, event.attempt)
    assert place == ("site:a", "run", 3, "a", 2)
    written = json.loads(json.dumps({**asdict(event), "kind": event.kind.label}))
    assert written["kind"] == "step.restarted" and written["data"] == {"step": "upload", "count": 2}


def test_a_fact_is_read_back_from_its_record_and_a_sentence_is_one() -> None:
    lost = Fact(Kind.STATE_LOST, {"last_round": 3, "last_attempt": 1, "node": 2})
    assert fact_of(json.loads(json.dumps(lost.record()))) == pickle.loads(pickle.dumps(lost)) == lost
    said = str(Log("run").at(4, "a").add(lost))
    assert said.startswith("node 2: site 'a': the private state of round 3, attempt 1 is missing or damaged")
    assert str(fact_of("what an early version has kept")) == "what an early version has kept"


def test_sentences_of_an_evaluation_say_so() -> None:
    ended = {"state": "Crashed", "message": ""}
    assert str(Fact(Kind.FLOW_RUN_ENDED, ended)) == "its flow run was Crashed"
    told = {**ended, "message": "killed", "step": "evaluate", "model": "m"}
    assert str(Fact(Kind.FLOW_RUN_ENDED, told)) == "evaluation: its flow run was Crashed (killed)"


def test_a_step_that_is_started_again_says_anew_and_a_committed_update_is_not_said_twice() -> None:
    log = Log("run")
    a, b = log.at(1, "a"), log.at(1, "b")
    for model, count in (("first", 2), ("first", 3), ("second", 4)):
        with a.step("evaluate", model=model):
            a.append(Kind.STEP_RESTARTED, step="evaluate", model=model, count=count)
    b.append(Kind.STEP_RESTARTED, step="validate", count=2)
    log.at(2, "a").append(Kind.STEP_RESTARTED, step="train", count=9)
    assert incidents(log.at(1).events()) == {
        "a": ["evaluation was started 3 times", "evaluation was started 4 times"],
        "b": ["validation was started 2 times"],
    }
    b.append(Kind.UPDATE_COMMITTED, bytes=1)
    b.append(Kind.UPDATE_LATE, why="not done in time")
    assert incidents(b.events()) == {"b": ["not done in time; its update was committed nevertheless"]}


def test_a_step_that_fails_says_how_and_what_is_not_kept_is_heard() -> None:
    heard: list[Event] = []
    log = Log("run", listeners=[heard.append])
    with pytest.raises(ValueError), log.at(1).step("aggregate"):
        log.at(1).append(Kind.STEP_PROGRESS, step="aggregate", figures={})
        raise ValueError("no")
    kept = log.at(1).events()
    assert [event.kind for event in heard] == [Kind.STEP_STARTED, Kind.STEP_PROGRESS, Kind.STEP_FAILED]
    assert kept == [event for event in heard if event.kind not in UNKEPT]
    assert kept[-1].data["error"] == "ValueError: no"


def test_threads_append_to_one_log() -> None:
    log = Log("run")

    def work(number: int) -> None:
        for _ in range(200):
            log.at(1, str(number)).append(Kind.UPDATE_COMMITTED, bytes=number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.at(1).events()) == 1600 and len(log.at(1, "3").events()) == 200
