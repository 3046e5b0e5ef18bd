"""Benchmarks that a judge grades, their commands, and the frames of videos."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from eval_files_judged import QUESTIONS, WRITERS, write_frames, write_gif, write_lines
from judge_server import MODEL, JudgeServer
from video_frames import read_frames

from llava.data.frames import frame_numbers
from llava.eval import eval_gpt_review_bench, eval_video_qa, summarize_gpt_review
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.base import JudgedBenchmark
from llava.eval.benchmarks.llava_bench import read_two_scores, shipped_rules
from llava.eval.benchmarks.mmvet import grading_prompt, read_score
from llava.eval.benchmarks.questions import Answer
from llava.eval.benchmarks.video_qa import normalised, read_match
from llava.eval.judging.judge import Judge

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def answered(name: str, root: Path, texts: list[str]) -> tuple[JudgedBenchmark, list[Answer]]:
    """A benchmark with its files written, and answers to its questions in order."""
    WRITERS[name](root)
    benchmark = get_benchmark(name)
    assert isinstance(benchmark, JudgedBenchmark)
    return benchmark, [Answer(q, text) for q, text in zip(benchmark.questions(root), texts, strict=True)]


@pytest.mark.parametrize("name", WRITERS)
def test_questions_have_pictures_or_videos_and_no_number_without_judge(name: str, tmp_path: Path):
    benchmark, answers = answered(name, tmp_path, ["x"] * 6)
    for answer, (text, _) in zip(answers, QUESTIONS, strict=True):
        assert answer.question.text == text
        if answer.question.video is None:
            assert all(isinstance(image, Path) and image.is_file() for image in answer.question.images)
            assert len(answer.question.images) == 1
        else:
            assert len(read_frames(answer.question.video, 8)) == 8
    scores = benchmark.score(tmp_path, answers)
    assert scores.headline is None
    assert "none was asked: set LLAVA_JUDGE_URL or LLAVA_JUDGE_KEY" in scores.notes[0]


@pytest.mark.parametrize("name", WRITERS)
def test_missing_files_are_named(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"is missing. `python -m llava.eval.data --benchmarks {name}`"):
        get_benchmark(name).questions(tmp_path)


# === MM-Vet ===


def last_word(request: dict) -> str:
    """The judge of these tests: predictions end with the grade they shall get."""
    return request["messages"][0]["content"].split(" | ")[-2].split()[-1]


def test_mmvet_is_the_mean_of_grades_in_all_and_by_capability(tmp_path: Path):
    texts = [f"I say {grade}" for grade in ("1.0", "0.5", "0.0", "0.4", "1.0", "0.7")]
    benchmark, answers = answered("mmvet", tmp_path, texts)
    with JudgeServer(last_word) as server:
        judge = Judge.from_environment(server.environment())
        scores = benchmark.judged(tmp_path, answers, judge, tmp_path / "reviews.jsonl")
    # All: 3.6 / 6. rec is needed by questions 0, 1, 4, 5: 3.2 / 4. ocr by 2, 3: 0.4 / 2. Others by one question each.
    expected = {"total": 60.0, "rec": 80.0, "ocr": 20.0, "gen": 50.0, "math": 40.0, "know": 70.0}
    assert scores.values == pytest.approx(expected)
    assert scores.headline == pytest.approx(60.0)
    assert MODEL in scores.notes[0] and "gpt-4-0613" in scores.notes[0]
    assert scores.counted is None and scores.judged_by == {"answered_as": [MODEL], "temperature": 0}


def test_mmvet_leaves_out_what_gets_no_grade(tmp_path: Path):
    benchmark, answers = answered("mmvet", tmp_path, [f"I say {word}" for word in ("1.0", "0.5", *["nothing"] * 4)])
    with JudgeServer(last_word) as server:
        judge = Judge.from_environment(server.environment())
        scores = benchmark.judged(tmp_path, answers, judge, tmp_path / "reviews.jsonl")
        assert scores.headline == pytest.approx(75.0) and scores.counted == 2
        assert scores.notes[1].startswith("4 of 6 answers got no grade")
        with pytest.raises(ValueError, match="gave no grade that can be read"):
            benchmark.judged(tmp_path, answers[2:], judge, tmp_path / "reviews.jsonl")


def test_mmvet_asks_with_the_published_layout():
    prompt = grading_prompt("How many?", "5<AND>6<OR>7", "five")
    lines = prompt.split("\n")
    assert lines[2:5] == [
        "Question | Ground truth | Prediction | Correctness",
        "--- | --- | --- | ---",
        "What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0",
    ]
    assert len(lines[4:11]) == 7 and all(line.count(" | ") == 3 for line in lines[4:11])
    assert lines[11:] == ["", "How many? | 5 <AND> 6 <OR> 7 | five | "]


def test_mmvet_grades_are_read():
    for text, score in (("0.5", 0.5), ("1", 1), (" 1.0 |", 1), ("**0.4**", 0.4), ("Correctness: .3", 0.3), ("0.", 0)):
        assert read_score(text) == {"score": score}, text
    for text in ("", "good", "10", "1.5", "7/10", "1/10", "-1", "0.5/1.0", "100%", "The score is 0.5"):
        assert read_score(text) is None, text


def test_mmvet_submission_and_its_script(tmp_path: Path):
    benchmark, answers = answered("mmvet", tmp_path, [f"says {number}" for number in range(6)])
    path = benchmark.write_submission(tmp_path, answers, tmp_path / "out" / "mmvet.submission")
    assert path == tmp_path / "out" / "mmvet.submission.json"
    expected = json.dumps({f"v1_{number}": f"says {number}" for number in range(6)}, indent=2)
    assert path.read_text() == expected
    write_lines(tmp_path / "a.jsonl", [{"question_id": n, "text": f"says {n}"} for n in range(6)])
    script = runpy.run_path(str(ROOT / "scripts" / "convert_mmvet_for_eval.py"))["main"]
    assert script(["--src", str(tmp_path / "a.jsonl"), "--dst", str(tmp_path / "b" / "c.json")]) == 0
    assert (tmp_path / "b" / "c.json").read_text() == expected
    assert script(["--src", str(tmp_path / "none.jsonl"), "--dst", str(tmp_path / "d.json")]) == 2


def test_mmvet_is_found_under_the_name_that_the_documents_use(tmp_path: Path):
    WRITERS["mmvet"](tmp_path)
    (tmp_path / "mm-vet").rename(tmp_path / "mmvet")
    assert len(get_benchmark("mmvet").questions(tmp_path)) == 6


def test_mmvet_says_which_truth_is_missing(tmp_path: Path):
    benchmark, answers = answered("mmvet", tmp_path, ["x"] * 6)
    (tmp_path / "mm-vet" / "mm-vet.json").write_text("{}")
    judge = Judge.from_environment({"LLAVA_JUDGE_URL": "http://127.0.0.1:9"})
    with pytest.raises(ValueError, match=r"mm-vet\.json has no question v1_0"):
        benchmark.judged(tmp_path, answers, judge, tmp_path / "r.jsonl")


# === LLaVA-Bench ===

GRADES = (8, 6, 4, 8, 7, 3)


def compare(request: dict) -> str:
    """The judge of these tests: GPT-4 gets 8, answers end with the grade they shall get."""
    second = request["messages"][1]["content"].split("[Assistant 2]\n")[1]
    return f"8 {second.split()[1]}\nBecause."


def test_llava_bench_is_the_share_of_gpt4s_grades(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    benchmark, answers = answered("llava_bench", tmp_path, [f"answer {grade}" for grade in GRADES])
    reviews = tmp_path / "llava_bench.reviews.jsonl"
    with JudgeServer(compare) as server:
        judge = Judge.from_environment(server.environment(LLAVA_JUDGE_WORKERS="1"))
        scores = benchmark.judged(tmp_path, answers, judge, reviews)
    # All: 36 of 6 * 8. conv: 8 and 8 of 16. detail: 6 and 7 of 16. complex: 4 and 3 of 16.
    assert scores.values == pytest.approx({"all": 75.0, "conv": 100.0, "detail": 81.25, "complex": 43.75})
    assert scores.headline == pytest.approx(75.0)
    assert server.requests[1]["messages"][1]["content"] == (
        "[Context]\nScene 002.jpg.\nIn colour.\n\n[Question]\nWhat is the man doing?\n\n"
        "[Assistant 1]\nIt is playing a guitar.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nanswer 6\n\n[End of Assistant 2]\n\n"
        f"[System]\n{shipped_rules()['llava_bench_detail']['prompt']}\n\n"
    )
    assert summarize_gpt_review.main(["-f", str(reviews)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "llava_bench.reviews",
        "all 75.0",
        "llava_bench_complex 43.8",
        "llava_bench_conv 100.0",
        "llava_bench_detail 81.2",
        "=" * 33,
    ]


def test_a_rule_file_in_the_folder_goes_first(tmp_path: Path):
    benchmark, answers = answered("llava_bench", tmp_path, [f"answer {grade}" for grade in GRADES])
    rules = {name: rule | {"prompt": "LLaVA's words"} for name, rule in shipped_rules().items()}
    (tmp_path / "llava-bench-in-the-wild" / "rule.json").write_text(json.dumps(rules))
    with JudgeServer(compare) as server:
        scores = benchmark.judged(tmp_path, answers, Judge.from_environment(server.environment()), tmp_path / "r.jsonl")
    assert all(request["messages"][1]["content"].endswith("LLaVA's words\n\n") for request in server.requests)
    assert "rule.json" in scores.notes[-1]


def test_two_grades_are_read_from_the_first_line():
    for text in ("8 7", "8, 7\nBecause 9 10", "(8, 7)", " 8.0 7.0 \n"):
        assert read_two_scores(text) == {"tuple": [8.0, 7.0]}, text
    for text in ("", "8", "8 7 6", "Assistant 1: 8", "80 70", "nan 7", "-1 -1"):
        assert read_two_scores(text) is None, text


def test_reviews_with_llavas_command(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    WRITERS["llava_bench"](tmp_path)
    folder = tmp_path / "llava-bench-in-the-wild"
    lines = [{"question_id": n, "text": f"answer {grade}", "answer_id": f"a{n}"} for n, grade in enumerate(GRADES)]
    write_lines(tmp_path / "answers.jsonl", reversed(lines))
    words = ["-q", folder / "questions.jsonl", "-c", folder / "context.jsonl", "-o", tmp_path / "review.jsonl"]
    words += ["-r", ROOT / "llava/eval/table/rule.json", "-a", folder / "answers_gpt4.jsonl"]
    arguments = [str(word) for word in [*words, tmp_path / "answers.jsonl"]]
    with JudgeServer(compare) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        for _ in range(2):
            assert eval_gpt_review_bench.main(arguments) == 0
        assert len(server.requests) == 6
    first = min(map(json.loads, (tmp_path / "review.jsonl").read_text().splitlines()), key=lambda line: line["id"])
    kept = {name: first[name] for name in first if name not in ("request", "judge")}
    assert kept == {
        "id": 1,
        "question_id": 0,
        "answer1_id": "gpt4-0",
        "answer2_id": "a0",
        "category": "llava_bench_conv",
        "content": "8 8\nBecause.",
        "tuple": [8.0, 8.0],
    }
    assert eval_gpt_review_bench.main([*arguments[:-2], str(tmp_path / "answers.jsonl")]) == 2
    assert "--answer-list names 1 files" in capsys.readouterr().err
    monkeypatch.setenv("LLAVA_JUDGE_URL", "https://api.openai.com/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert eval_gpt_review_bench.main(arguments) == 2
    assert "wants a key" in capsys.readouterr().err


def test_summaries_take_last_reviews_and_leave_out_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    reviews = [
        {"question_id": 1, "tuple": [8, 2]},
        {"question_id": 1, "tuple": [8, 4]},
        {"question_id": 2, "tuple": [-1, -1]},
        {"question_id": 3, "tuple": [10, 5]},
    ]
    write_lines(tmp_path / "review_tiny.jsonl", reviews)
    assert summarize_gpt_review.main(["-d", str(tmp_path)]) == 0
    # Question 1 by its last review: (4 + 5) / (8 + 10).
    assert capsys.readouterr().out.splitlines()[:2] == ["review_tiny", "all 50.0"]
    assert summarize_gpt_review.main(["-d", str(tmp_path), "-i", "1", "-f", "review_tiny.jsonl"]) == 0
    assert "all 50.0" in capsys.readouterr().out
    for words in ([], ["-d", str(tmp_path / "none")], ["-f", str(tmp_path / "none.jsonl")]):
        assert summarize_gpt_review.main(words) == 2
        assert capsys.readouterr().err


# === Videos ===

VERDICTS = (("yes", "5"), ("yes", "4"), ("no", "0"), ("no", "1"), ("yes", "4.8"), ("no", "2"))
PREDICTIONS = ["Cat.", "He is playing a guitar!", "ocean", "Two cats", "red", "I don't know"]


def match(request: dict) -> str:
    """The judge of these tests: a fixed verdict for each prediction."""
    said = request["messages"][1]["content"].split("Predicted Answer: ")[1].split("\n")[0]
    pred, score = VERDICTS[PREDICTIONS.index(said)]
    return f"{{'pred': '{pred}', 'score': {score}}}"


@pytest.mark.parametrize("name", ["msvd", "msrvtt", "tgif", "activitynet"])
def test_video_answers_are_judged(name: str, tmp_path: Path):
    benchmark, answers = answered(name, tmp_path, PREDICTIONS)
    # Equal words: cat, red. Whole words: also guitar and two; "no" is no word of "I dont know".
    words = {"exact_match": 200 / 6, "contains_answer": 400 / 6}
    assert benchmark.score(tmp_path, answers).values == pytest.approx(words)
    with JudgeServer(match) as server:
        judge = Judge.from_environment(server.environment())
        scores = benchmark.judged(tmp_path, answers, judge, tmp_path / "r.jsonl")
    # 3 of 6 are right; scores 5 + 4 + 0 + 1 + 4 (4.8 without its decimals) + 2 = 16.
    assert scores.values == pytest.approx(words | {"accuracy": 50.0, "mean_score": 16 / 6})
    assert scores.headline == pytest.approx(50.0)
    assert scores.counted is None
    asked = next(text for text in server.questions if "ocean" in text)
    assert "Question: Where are they?\nCorrect Answer: beach\nPredicted Answer: ocean\n\n" in asked


def test_verdicts_on_videos_are_read():
    for text in ("{'pred': 'yes', 'score': 4}", '```json\n{"pred": "Yes", "score": 4.8}\n```', "pred: yes, score: 4"):
        assert read_match(text) == {"pred": "yes", "score": 4}, text
    for text in ("", "yes", "{'pred': 'maybe', 'score': 4}", "{'pred': 'no'}", "{'pred': 'no', 'score': 10}"):
        assert read_match(text) is None, text
    assert read_match("pred: no, score: 10/10") is None


ASPECTS = {
    "vcg_generic": {"factual accuracy": 4, "detail orientation": 2, "contextual understanding": 3},
    "vcg_temporal": {"temporal accuracy": 1},
    "vcg_consistency": {"consistency": 5},
}
VALUES = {
    "vcg_generic": {"correctness": 4.0, "detail_orientation": 2.0, "contextual_understanding": 3.0},
    "vcg_temporal": {"temporal_understanding": 1.0},
    "vcg_consistency": {"consistency": 5.0},
}


@pytest.mark.parametrize("name", ASPECTS)
def test_free_answers_about_videos_are_graded_by_aspect(name: str, tmp_path: Path):
    """The score is cut to an integer, as Video-ChatGPT does; each aspect has its own request and its own mean."""
    benchmark, answers = answered(name, tmp_path, PREDICTIONS)

    def grade(request: dict) -> str:
        asked = request["messages"][1]["content"]
        score = next(value for aspect, value in ASPECTS[name].items() if f"only as a {aspect} score" in asked)
        return f"{{'score': {score}.9}}" if score < 5 else '{"score": 5}'

    with JudgeServer(grade) as server:
        judge = Judge.from_environment(server.environment())
        scores = benchmark.judged(tmp_path, answers, judge, tmp_path / "r.jsonl")
        records = 3 if name == "vcg_consistency" else 6
        assert len(server.requests) == records * len(ASPECTS[name])
    assert scores.values == VALUES[name]
    assert scores.headline == pytest.approx(sum(VALUES[name].values()) / len(VALUES[name]))
    asked = next(text for text in server.questions if "ocean" in text)
    if name == "vcg_consistency":
        assert "Question 1: Where are they?\nQuestion 2: How many dogs are there?\nCorrect Answer: beach\n" in asked
        assert "Answer to Question 1: ocean\nPredicted Answer to Question 2: Two cats\n\n" in asked
        assert "first one twice" in " ".join(scores.notes)
    else:
        assert "Question: Where are they?\nCorrect Answer: beach\nPredicted Answer: ocean\n\n" in asked


def test_a_pair_of_questions_with_one_answer_is_left_out_of_consistency(tmp_path: Path):
    benchmark, answers = answered("vcg_consistency", tmp_path, PREDICTIONS)
    with JudgeServer(lambda request: "{'score': 3}") as server:
        judge = Judge.from_environment(server.environment())
        scores = benchmark.judged(tmp_path, answers[1:], judge, tmp_path / "r.jsonl")
        assert scores.values == {"consistency": 3.0} and scores.counted == 4  # of five answers
        assert len(server.requests) == 2
        alone = benchmark.judged(tmp_path, answers[:1], judge, tmp_path / "r.jsonl")
    assert alone.headline is None and "both" in alone.notes[0]


def test_an_answer_without_the_grade_of_one_aspect_does_not_count_as_graded(tmp_path: Path):
    benchmark, answers = answered("vcg_generic", tmp_path, PREDICTIONS)

    def grade(request: dict) -> str:
        asked = request["messages"][1]["content"]
        return "no idea" if "ocean" in asked and "detail orientation score" in asked else "{'score': 3}"

    with JudgeServer(grade) as server:
        judge = Judge.from_environment(server.environment())
        scores = benchmark.judged(tmp_path, answers, judge, tmp_path / "r.jsonl")
    assert scores.headline == 3 and scores.counted == 5


@pytest.mark.parametrize("name", ASPECTS)
def test_predictions_are_video_chatgpts_records(name: str, tmp_path: Path):
    benchmark, answers = answered(name, tmp_path, PREDICTIONS)
    path = benchmark.write_submission(tmp_path, answers, tmp_path / "vcg.submission")
    assert path is not None
    first = json.loads(path.read_text())[0]
    if name == "vcg_consistency":
        asked = {"Q1": QUESTIONS[0][0], "Q2": QUESTIONS[1][0], "pred1": PREDICTIONS[0], "pred2": PREDICTIONS[1]}
    else:
        asked = {"Q": QUESTIONS[0][0], "pred": PREDICTIONS[0]}
    assert first == asked | {"A": "cat", "video_name": "video0"}


def test_words_are_normalised():
    assert normalised(" It's a Cat-like,  thing. ") == "its a cat like thing"


def test_answer_files_of_video_llava_are_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [
        {"id": f"v_{n}", "question": text, "answer": answer, "pred": said}
        for n, ((text, answer), said) in enumerate(zip(QUESTIONS, PREDICTIONS, strict=True))
    ]
    write_lines(tmp_path / "merge.jsonl", lines)
    arguments = ["--pred_path", str(tmp_path / "merge.jsonl"), "--output_dir", str(tmp_path / "graded")]
    arguments += ["--output_json", str(tmp_path / "results.json"), "--num_tasks", "2", "--api_key", "k", "--api_base"]
    with JudgeServer(match) as server:
        for _ in range(2):
            assert eval_video_qa.main([*arguments, server.url]) == 0
        assert len(server.requests) == 6 and set(server.keys) == {"Bearer k"}
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == ["All evaluation completed!", "Yes count: 3", "No count: 3", "Accuracy: 0.5"]
    assert float(printed[4].removeprefix("Average score: ")) == pytest.approx(16 / 6)
    together = json.loads((tmp_path / "results.json").read_text())
    assert together["v_4"] == [
        {"pred": "yes", "score": 4},
        {"q": "What colour is the car?", "a": "red", "pred": "red"},
    ]
    lacking = {"id": "v_0", "question": "Who?"}
    for some, said in (
        ([lines[0], lines[0]], "answers question 'v_0' twice"),
        ([lines[0], lacking], "answer 2 has no field 'answer', only id, question; --pred_path takes Video-LLaVA's"),
        ([], "holds no answers; --pred_path takes Video-LLaVA's answer file"),
    ):
        write_lines(tmp_path / "merge.jsonl", some)
        assert eval_video_qa.main([*arguments, "http://127.0.0.1:9"]) == 2
        error = capsys.readouterr().err
        assert said in error and "download" not in error
    (tmp_path / "merge.jsonl").unlink()
    assert eval_video_qa.main([*arguments, "http://127.0.0.1:9"]) == 2
    assert "There is no answer file" in capsys.readouterr().err


def test_video_submissions_are_video_llavas_answer_files(tmp_path: Path):
    benchmark, answers = answered("msvd", tmp_path, PREDICTIONS)
    path = benchmark.write_submission(tmp_path, answers[1:], tmp_path / "msvd.submission")
    assert path == tmp_path / "msvd.submission.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 5 and lines[0] == {
        "id": "1",
        "question": "What is the man doing?",
        "answer": "playing a guitar",
        "pred": "He is playing a guitar!",
    }
    assert eval_video_qa.read_predictions(path)["5"] == {
        "question": "Is it raining?",
        "answer": "no",
        "pred": "I don't know",
    }
    with pytest.raises(ValueError, match="question id '1' comes twice"):
        benchmark.write_submission(tmp_path, [answers[1], answers[1]], tmp_path / "twice")


def test_answers_to_repeated_ids_belong_to_questions_by_place(tmp_path: Path):
    WRITERS["msvd"](tmp_path)
    folder = tmp_path / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA"
    ids = ["7", "7", "8", "9", "9", "9"]
    asked, told = (json.loads((folder / name).read_text()) for name in ("test_q.json", "test_a.json"))
    told.reverse()  # the fixture lists answers backwards
    for name, records in (("test_q.json", asked), ("test_a.json", told)):
        for record, identity in zip(records, ids, strict=True):
            record["question_id"] = identity
        (folder / name).write_text(json.dumps(records))
    questions = get_benchmark("msvd").questions(tmp_path)
    assert [(q.question_id, q.facts["answer"]) for q in questions] == list(
        zip(ids, [answer for _, answer in QUESTIONS], strict=True)
    )
    for wrong in (told[1:], [told[2], *told[1:]], told[::-1]):
        (folder / "test_a.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"come several times .* do not hold the same ids at the same places"):
            get_benchmark("msvd").questions(tmp_path)


def test_answers_belong_to_questions_by_id(tmp_path: Path):
    WRITERS["msvd"](tmp_path)
    questions = get_benchmark("msvd").questions(tmp_path)
    assert [question.facts["answer"] for question in questions] == [answer for _, answer in QUESTIONS]
    path = tmp_path / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA" / "test_a.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    with pytest.raises(ValueError, match=r"record 6: test_a\.json has no answer to question 5"):
        get_benchmark("msvd").questions(tmp_path)
    path.write_text('{"answer": "cat"}')
    with pytest.raises(ValueError, match="is not a list of JSON objects"):
        get_benchmark("msvd").questions(tmp_path)


def test_a_video_file_goes_before_a_gif_and_one_that_is_missing_is_still_named(tmp_path: Path):
    WRITERS["tgif"](tmp_path)
    folder = tmp_path / "GPT_Zero_Shot_QA" / "TGIF_Zero_Shot_QA" / "mp4"
    (folder / "video0.mp4").touch()
    (folder / "video2.gif").unlink()
    videos = [question.video for question in get_benchmark("tgif").questions(tmp_path)]
    assert videos[::2] == [folder / "video0.mp4", folder / "video1", folder / "video2.mp4"]


# === Frames ===


def shades(path: Path, count: int) -> list[int]:
    return [frame.getpixel((0, 0))[0] for frame in read_frames(path, count)]


def test_frames_are_taken_at_equal_distances(tmp_path: Path):
    # Of 10 frames, 4 at distances of 3; of 12, 8 at distances of 11/7, rounded down.
    assert frame_numbers(10, 4) == [0, 3, 6, 9]
    assert frame_numbers(12, 8) == [0, 1, 3, 4, 6, 7, 9, 11]
    write_gif(tmp_path / "a.gif", range(0, 250, 25))
    assert shades(tmp_path / "a.gif", 4) == [0, 75, 150, 225]
    write_frames(tmp_path / "frames", range(0, 240, 20))
    assert shades(tmp_path / "frames", 8) == [0, 20, 60, 80, 120, 140, 180, 220], "frame10 comes after frame9"
    assert all(frame.mode == "RGB" for frame in read_frames(tmp_path / "frames", 2))
    write_gif(tmp_path / "short.gif", (10, 200))
    assert shades(tmp_path / "short.gif", 4) == [10, 10, 10, 200]
    assert shades(tmp_path / "short.gif", 1) == [10]


def test_videos_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gif").write_bytes(b"GIF89a nothing")
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    monkeypatch.setitem(sys.modules, "av", None)
    for name, said in (
        ("empty", r"empty cannot be read: the folder holds no image"),
        ("broken.gif", r"broken\.gif cannot be read"),
        ("a.mp4", r"a\.mp4 cannot be read: the package av is not installed.*`pip install av`"),
        ("none.mp4", r"There is no video .*none\.mp4"),
    ):
        with pytest.raises(ValueError, match=said):
            read_frames(tmp_path / name, 2)


def test_video_files_are_read_with_av(tmp_path: Path):
    av = pytest.importorskip("av", reason="reads video files")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 25 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert shades(tmp_path / "a.mp4", 4) == pytest.approx([0, 75, 150, 225], abs=4)
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"b\.mp4 cannot be read"):
        read_frames(tmp_path / "b.mp4", 2)
