"""The judge: its endpoint with faults, verdict files that outlive a kill, and what is computed from grades."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from judge_server import GARBAGE, HANG, MODEL, JudgeServer

from llava.eval.judging.chat_api import ChatApi, ChatError, Reply
from llava.eval.judging.judge import Judge, JudgeRequest, VerdictFile, judge_is_configured, judged_scores
from llava.eval.runner.answer_file import AnswerFile

ASK = ({"role": "user", "content": "Is 1 equal to 1?"},)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def api_of(server: JudgeServer, **changes) -> ChatApi:
    return ChatApi(**{"url": server.url, "model": "judge", "timeout": 100.0, "first_pause": 0.01} | changes)


def ask(api: ChatApi, pauses: list[float] | None = None) -> str:
    return api.ask(ASK, 8, ([] if pauses is None else pauses).append).text


def yes_or_none(text: str) -> dict[str, str] | None:
    return {"pred": text} if text in ("yes", "no") else None


def tasks_of(texts: list[str]) -> list[JudgeRequest]:
    return [
        JudgeRequest(({"role": "user", "content": text},), {"question_id": number}) for number, text in enumerate(texts)
    ]


def grade(judge: Judge, texts: list[str], reviews: Path) -> list[dict[str, str] | None]:
    verdicts = judge.grade(tasks_of(texts), yes_or_none, reviews, "Say yes or no.", 8)
    return [verdict.grade for verdict in verdicts]


# === The endpoint ===


def test_a_question_is_asked_as_the_protocol_has_it():
    with JudgeServer(lambda request: "yes") as server:
        assert ask(api_of(server, key="secret")) == "yes"
    assert server.requests == [{"model": "judge", "messages": list(ASK), "temperature": 0, "max_tokens": 8}]
    assert server.keys == ["Bearer secret"]


def test_an_overloaded_server_is_asked_again_after_growing_pauses():
    pauses: list[float] = []
    with JudgeServer(lambda request: "yes", [429, 500, 503]) as server:
        assert ask(api_of(server, first_pause=0.5), pauses) == "yes"
    assert len(server.requests) == 4
    assert pauses == [0.5, 1.0, 2.0]


def test_a_server_that_hangs_is_asked_again():
    with JudgeServer(lambda request: "yes", [HANG]) as server:
        assert ask(api_of(server, timeout=1.0)) == "yes"
    assert len(server.requests) >= 2


def test_a_server_that_stays_out_of_order_is_named():
    with JudgeServer(lambda request: "yes", [500] * 3) as server:
        with pytest.raises(ChatError, match=r"127\.0\.0\.1.* gave no answer in 3 attempts; .*status 500.*fault 500"):
            ask(api_of(server, attempts=3))
        url = server.url
    with pytest.raises(ChatError, match=r"no answer in 2 attempts; the last one ended with: http.* cannot be reached"):
        ask(ChatApi(url, attempts=2, first_pause=0.01))


def test_parameters_that_a_model_refuses_are_left_out_from_then_on(tmp_path: Path):
    with JudgeServer(lambda request: "yes", refused=("max_tokens", "temperature")) as server:
        api = api_of(server, attempts=1)
        verdicts = Judge(api, workers=1).grade(tasks_of(["a", "b"]), yes_or_none, tmp_path / "r.jsonl", "Again.", 8)
        assert [set(request) - {"model", "messages"} for request in server.requests] == [
            {"temperature", "max_tokens"},
            {"temperature", "max_completion_tokens"},
            {"max_completion_tokens"},
            {"max_completion_tokens"},
        ]
        # What a model thinks counts as well, so that there is room for more than the answer.
        assert server.requests[-1]["max_completion_tokens"] == 8 + 4096
        assert api_of(server).ask(ASK, 8) == Reply("yes", MODEL, None)
        assert len(server.requests) == 7, "another judge does not know"
    scores = judged_scores(100.0, {}, verdicts, "gpt-4")
    assert scores.judged_by == {"answered_as": [MODEL], "temperature": None} and "no temperature" in scores.notes[1]
    again = Judge(api, workers=1).grade(tasks_of(["a"]), yes_or_none, tmp_path / "r.jsonl", "Again.", 8)
    assert again[0].temperature is None, "the file remembers"


def test_a_refusal_that_stays_is_said():
    with JudgeServer(lambda request: "yes", refused=("max_tokens", "max_completion_tokens")) as server:
        with pytest.raises(ChatError, match=r"refuses the question .*max_completion_tokens"):
            ask(api_of(server))
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, "refuses the key .*check LLAVA_JUDGE_KEY"),
        (404, "no model 'judge' .*check LLAVA_JUDGE_URL and LLAVA_JUDGE_MODEL"),
        (400, "refuses the question .*fault 400"),
        (GARBAGE, "answered something else than a chat completion .*Welcome"),
    ],
)
def test_what_asking_again_cannot_mend_is_said_at_once(fault: int | str, said: str):
    with JudgeServer(lambda request: "yes", [fault]) as server:
        with pytest.raises(ChatError, match=said) as caught:
            ask(api_of(server, key="secret"))
        assert len(server.requests) == 1
    assert "secret" not in str(caught.value)


def test_the_environment_names_the_judge():
    api = ChatApi.from_environment({"LLAVA_JUDGE_KEY": "k", "LLAVA_JUDGE_TIMEOUT": "7", "OPENAI_API_KEY": "other"})
    assert (api.url, api.model, api.key, api.timeout) == ("https://api.openai.com/v1", "gpt-4.1", "k", 7.0)
    assert ChatApi.from_environment({"OPENAI_API_KEY": "openai"}).key == "openai"
    elsewhere = {"LLAVA_JUDGE_URL": "http://localhost:8000/v1", "OPENAI_API_KEY": "openai"}
    assert ChatApi.from_environment(elsewhere).key is None, "a key goes to the one it belongs to"
    assert Judge.from_environment(elsewhere | {"LLAVA_JUDGE_WORKERS": "3"}).workers == 3
    assert judge_is_configured(elsewhere) and judge_is_configured({"LLAVA_JUDGE_KEY": "k"})
    assert not judge_is_configured({"OPENAI_API_KEY": "openai", "LLAVA_JUDGE_MODEL": "judge"})


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "wants a key; set LLAVA_JUDGE_KEY or OPENAI_API_KEY"),
        ({"LLAVA_JUDGE_URL": "localhost:8000"}, "'localhost:8000' is not an http"),
        ({"LLAVA_JUDGE_KEY": "k", "LLAVA_JUDGE_TIMEOUT": "soon"}, "LLAVA_JUDGE_TIMEOUT is 'soon'"),
        ({"LLAVA_JUDGE_KEY": "k", "LLAVA_JUDGE_WORKERS": "0"}, "LLAVA_JUDGE_WORKERS is '0'"),
        ({"LLAVA_JUDGE_KEY": "k\u00e4y"}, "The key of the judge holds characters"),
    ],
)
def test_what_the_environment_lacks_is_said(environment: dict[str, str], said: str):
    with pytest.raises(ValueError, match=said):
        Judge.from_environment(environment)


def test_results_record_the_judge_and_no_key():
    judge = Judge(ChatApi("https://user:password@host.example/v1?key=hidden", "judge", "secret"))
    described = judge.describe()
    assert described["model"] == "judge" and described["endpoint"] == "https://host.example/v1"
    assert described["temperature"] == 0 and "prompt_version" in described
    for hidden in ("password", "hidden", "secret"):
        assert hidden not in json.dumps(described)
    assert "secret" not in repr(judge)


# === Verdicts ===


def test_verdicts_come_in_the_order_of_the_tasks_and_are_asked_for_once(tmp_path: Path):
    reviews = tmp_path / "deep" / "reviews.jsonl"
    texts = [f"Is {number} even?" for number in range(20)]
    even = [{"pred": "no" if number % 2 else "yes"} for number in range(20)]

    def is_even(request: dict) -> str:
        return "no" if int(request["messages"][0]["content"].split()[1]) % 2 else "yes"

    with JudgeServer(is_even, [None, 429, None, 500]) as server:
        judge = Judge(api_of(server))
        assert grade(judge, texts[:12], reviews) == even[:12]
        assert grade(judge, texts, reviews) == even
        assert grade(judge, texts, reviews) == even
        assert len(server.requests) == 20 + 2
    lines = [json.loads(line) for line in reviews.read_text().splitlines()]
    assert sorted(line["question_id"] for line in lines) == list(range(20))
    assert {line["judge"] for line in lines} == {MODEL}


def test_equal_requests_share_a_verdict_and_changed_ones_do_not(tmp_path: Path):
    reviews = tmp_path / "reviews.jsonl"
    with JudgeServer(lambda request: "yes") as server:
        judge = Judge(api_of(server))
        assert grade(judge, ["a", "b", "a"], reviews) == [{"pred": "yes"}] * 3
        assert sorted(server.questions) == ["a", "b"]
        grade(judge, ["a", "changed"], reviews)
        assert sorted(server.questions) == ["a", "b", "changed"]
        grade(Judge(api_of(server, model="other")), ["a"], reviews)
        assert len(server.requests) == 4, "another judge's verdict is another one"


def test_a_reply_without_grade_is_asked_for_once_more_and_again_by_the_next_run(tmp_path: Path):
    decided = {"slow"}

    def answer(request: dict) -> str:
        first = request["messages"][0]["content"]
        return "yes" if first in decided and len(request["messages"]) == 3 else "Well..."

    with JudgeServer(answer) as server:
        judge = Judge(api_of(server), workers=1)
        assert grade(judge, ["slow", "late"], tmp_path / "r.jsonl") == [{"pred": "yes"}, None]
        assert server.questions == ["slow", "Say yes or no.", "late", "Say yes or no."]
        decided.add("late")
        for _ in range(2):
            assert grade(judge, ["slow", "late"], tmp_path / "r.jsonl") == [{"pred": "yes"}, {"pred": "yes"}]
        assert server.questions[4:] == ["late", "Say yes or no."], "what has a grade is not asked again"
    assert server.requests[1]["messages"][1:] == [
        {"role": "assistant", "content": "Well..."},
        {"role": "user", "content": "Say yes or no."},
    ]
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line.get("ungraded", line.get("pred")) for line in lines] == ["yes", True, "yes"]


def test_an_error_keeps_the_verdicts_before_it(tmp_path: Path):
    reviews = tmp_path / "reviews.jsonl"
    with JudgeServer(lambda request: "yes", [None, None, 401]) as server:
        judge = Judge(api_of(server), workers=1)
        with pytest.raises(ChatError, match="refuses the key"):
            grade(judge, ["a", "b", "c", "d"], reviews)
        assert server.questions == ["a", "b", "c"], "nothing is asked after the error"
        assert grade(judge, ["a", "b", "c", "d"], reviews) == [{"pred": "yes"}] * 4
        assert server.questions == ["a", "b", "c", "c", "d"]


PROGRAM = """
import sys
from pathlib import Path
from llava.eval.judging.judge import JudgeRequest, Judge
tasks = [JudgeRequest(({"role": "user", "content": f"q{n}"},), {"question_id": n}) for n in range(12)]
Judge.from_environment().grade(tasks, lambda text: {"pred": text}, Path(sys.argv[1]), "Again.", 8)
"""


def test_a_kill_loses_no_verdict_and_none_is_asked_for_twice(tmp_path: Path):
    reviews = tmp_path / "reviews.jsonl"
    with JudgeServer(lambda request: "yes", [None] * 7 + [HANG] * 2) as server:
        variables = os.environ | server.environment(LLAVA_JUDGE_WORKERS="2", NO_PROXY="127.0.0.1")
        killed = subprocess.Popen([sys.executable, "-c", PROGRAM, str(reviews)], env=variables)
        deadline = time.monotonic() + 300
        while len(server.requests) < 9 and time.monotonic() < deadline and killed.poll() is None:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        kept = [json.loads(line) for line in reviews.read_text().splitlines()]
        assert len(kept) == 7, "all that were answered"
        with reviews.open("a") as file:
            file.write('{"request": "torn", "judge')
        judge = Judge.from_environment(server.environment(LLAVA_JUDGE_WORKERS="2"))
        tasks = tasks_of([f"q{number}" for number in range(12)])
        verdicts = judge.grade(tasks, yes_or_none, reviews, "Again.", 8)
    assert [verdict.grade for verdict in verdicts] == [{"pred": "yes"}] * 12
    asked = Counter(server.questions)
    assert all(asked[f"q{line['question_id']}"] == 1 for line in kept)
    lines = [json.loads(line) for line in reviews.read_text().splitlines()]
    assert sorted(line["question_id"] for line in lines) == list(range(12))


def test_no_verdict_is_paid_for_by_two_runs_at_once(tmp_path: Path):
    reviews = tmp_path / "graded" / "verdicts.jsonl"
    with JudgeServer(lambda request: "yes") as server, AnswerFile(reviews).locked():
        judge = Judge.from_environment(server.environment())
        with pytest.raises(ValueError, match=r"Another run is writing .*verdicts\.jsonl"):
            grade(judge, ["q"], reviews)
        assert not server.requests


def test_ends_of_verdict_files(tmp_path: Path):
    path = tmp_path / "reviews.jsonl"
    line = {"request": "1", "judge": "j", "content": "yes"}
    path.write_text(json.dumps(line))
    with VerdictFile(path) as file:
        assert file.lines == {"1": line}, "only the end of the line was missing"
        file.add(line | {"request": "2"})
    assert [json.loads(text)["request"] for text in path.read_text().splitlines()] == ["1", "2"]
    path.write_text('{"question_id": 1, "tuple": [8, 7]}\n')
    with pytest.raises(ValueError, match="line 1 is not a verdict of this program; move the file away"):
        VerdictFile(path)
    assert path.read_text() == '{"question_id": 1, "tuple": [8, 7]}\n'
