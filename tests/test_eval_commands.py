"""LLaVA's commands `model_vqa*` with LLaVA's flags and files, and the scripts of scripts/v1_5/eval."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from eval_files_choice import write_mmbench, write_mmbench_cn, write_sqa
from eval_small import read_lines, texts, write_squares
from fake_machine import Shell, amd, nvidia
from tiny_folder import write_model

from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from llava.eval.benchmarks.mmbench import CHINESE_LETTER_PROMPT
from llava.eval.run import parse
from llava.eval.runner.vqa_command import chunk, vqa_parser

LETTER = "Answer with the option's letter from the given choices directly."
FIELDS = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
SCRIPTS = {
    "gqa": "gqa",
    "llavabench": "llava_bench",
    "mmbench": "mmbench",
    "mmbench_cn": "mmbench_cn",
    "mme": "mme",
    "mmvet": "mmvet",
    "pope": "pope",
    "seed": "seed",
    "sqa": "sqa",
    "textvqa": "textvqa",
    "vizwiz": "vizwiz",
    "vqav2": "vqav2",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny", max_position_embeddings=1024)


def common(model: Path, questions: Path, images: Path, answers: Path) -> list[str]:
    """The flags of LLaVA's scripts."""
    return [
        "--model-path",
        str(model),
        "--question-file",
        str(questions),
        "--image-folder",
        str(images),
        "--answers-file",
        str(answers),
        "--temperature",
        "0",
        "--conv-mode",
        "vicuna_v1",
        "--max_new_tokens",
        "4",
        "--device",
        "cpu",
    ]


def test_answer_files_are_llavas(model: Path, tmp_path: Path):
    questions = write_squares(tmp_path)
    images, answers = tmp_path / "squares" / "images", tmp_path / "answers" / "tiny.jsonl"
    words = common(model, questions, images, answers)
    assert model_vqa_loader.main(words) == 0
    lines, asked = read_lines(answers), read_lines(questions)
    assert [list(line) for line in lines] == [FIELDS] * len(asked)
    for line, question in zip(lines, asked, strict=True):
        assert (line["question_id"], line["prompt"]) == (question["question_id"], question["text"])
        assert line["model_id"] == "llava-v1.5-tiny" and line["metadata"] == {}
        assert line["text"] == line["text"].strip()
    assert len({line["text"] for line in lines}) > 3
    long = tmp_path / "answers" / "long.jsonl"
    assert model_vqa.main([*common(model, questions, images, long), "--batch-size", "4"]) == 0
    assert texts(long) == [line["text"] for line in lines], "both commands ask the same way, in batches of any size"


def test_chunks_are_llavas_and_together_everything(model: Path, tmp_path: Path):
    questions = write_squares(tmp_path, count=7)
    images = tmp_path / "squares" / "images"
    said = []
    for number in range(4):
        answers = tmp_path / f"4_{number}.jsonl"
        words = [*common(model, questions, images, answers), "--num-chunks", "4", "--chunk-idx", str(number)]
        assert model_vqa_loader.main([*words, "--compression", "none"]) == 0
        said.append([line["question_id"] for line in read_lines(answers)])
    assert said == [[0, 1], [1, 3], [4, 5], [6]]
    assert list(chunk(range(10), 7, 4)) == [8, 9] and not chunk(range(10), 7, 6), "LLaVA's last chunks may be empty"
    with pytest.raises(ValueError, match="--chunk-idx is 4, but there are 4 chunks; give 0 to 3"):
        chunk(range(10), 4, 4)


def test_commands_go_on(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    questions = write_squares(tmp_path, count=5)
    images, answers = tmp_path / "squares" / "images", tmp_path / "a.jsonl"
    words = common(model, questions, images, answers)
    kept = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(b"nothing")
    assert model_vqa_loader.main(words) == 1
    assert "a.jsonl: 1 questions have no answer" in capsys.readouterr().err
    (images / "3.png").write_bytes(kept)
    before = read_lines(answers)
    assert model_vqa_loader.main(words) == 0
    after = read_lines(answers)
    assert len(after) == 5 and [line for line in after if line["question_id"] != 3] == before


def test_answers_of_other_settings_are_set_aside(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """LLaVA writes over them; here nothing that was answered is lost."""
    questions = write_squares(tmp_path, count=3)
    answers = tmp_path / "a.jsonl"
    words = common(model, questions, tmp_path / "squares" / "images", answers)
    answers.write_text("Of LLaVA itself.\n")
    assert model_vqa_loader.main(words) == 0
    said = capsys.readouterr().err
    assert "a.settings.json, which says what they belong to, is gone" in said
    assert f"they are kept in {answers}.former, and all questions are answered anew" in said
    assert (tmp_path / "a.jsonl.former").read_text() == "Of LLaVA itself.\n"
    first = answers.read_text()
    settings = (tmp_path / "a.settings.json").read_text()
    assert model_vqa_loader.main([*words, "--dominant", "5"]) == 0
    assert "compression.v2v.dominant was 7 and is 5 now" in capsys.readouterr().err
    assert (tmp_path / "a.jsonl.former1").read_text() == first
    assert (tmp_path / "a.jsonl.former1.settings.json").read_text() == settings
    assert len(read_lines(answers)) == 3 and answers.read_text() != first
    run = json.loads((tmp_path / "a.settings.json").read_text())["run"]
    answers.rename(tmp_path / f"a.run-{run}.rank0.jsonl")
    (tmp_path / "a.settings.json").write_text("{")
    second = (tmp_path / f"a.run-{run}.rank0.jsonl").read_text()
    assert model_vqa_loader.main(words) == 0
    assert "a.settings.json cannot be read" in capsys.readouterr().err
    assert (tmp_path / "a.jsonl.former2").read_text() == second, "also what a killed run left"
    assert model_vqa_loader.main([*words, "--temperature", "1", "--fresh"]) == 0
    assert not (tmp_path / "a.jsonl.former3").exists()
    kept = answers.read_text()
    assert model_vqa_loader.main([*words, "--fresh", "--question-file", str(tmp_path / "nowhere.jsonl")]) == 2
    assert answers.read_text() == kept, "--fresh removes nothing before everything else is known to fit"


def test_science_questions_are_asked_as_in_llava(model: Path, tmp_path: Path):
    write_sqa(tmp_path)
    folder, answers = tmp_path / "scienceqa", tmp_path / "sqa.jsonl"
    words = common(model, folder / "llava_test_CQM-A.json", folder / "images" / "test", answers)
    assert model_vqa_science.main([*words, "--single-pred-prompt", "--batch-size", "3"]) == 0
    records = json.loads((folder / "llava_test_CQM-A.json").read_text())
    for line, record in zip(read_lines(answers), records, strict=True):
        asked = record["conversations"][0]["value"].replace("<image>", "").strip()
        mark = "<image>\n" if "image" in record else ""
        assert line["question_id"] == record["id"]
        assert line["prompt"] == f"{mark}{asked}\n{LETTER}"
    assert model_vqa_science.main([*words[:-2], "--device", "cpu", "--fresh"]) == 0
    assert LETTER not in read_lines(answers)[0]["prompt"]


def test_mmbench_is_asked_as_in_llava(model: Path, tmp_path: Path):
    write_mmbench(tmp_path)
    (table,) = (tmp_path / "mmbench").glob("*.tsv")
    answers = tmp_path / "mmbench.jsonl"
    words = common(model, table, Path(), answers)
    assert model_vqa_mmbench.main([*words, "--single-pred-prompt", "--batch-size", "4"]) == 0
    lines = read_lines(answers)
    assert [*FIELDS[:3], "round_id", "options", "option_char"] == [name for name in lines[0] if name not in FIELDS[3:]]
    assert all(line["round_id"] == 0 and LETTER not in line["prompt"] for line in lines)
    with_hint = next(line for line in lines if line["question_id"] == 8)
    assert with_hint["prompt"] == "The picture is bright.\nIs it day?\nA. yes\nB. no"
    assert model_vqa_mmbench.main([*words, "--all-rounds", "--fresh"]) == 0
    rounds = [line for line in read_lines(answers) if line["question_id"] == 8]
    assert [(line["round_id"], line["options"], line["option_char"]) for line in rounds] == [
        (0, ["yes", "no"], ["A", "B"]),
        (1, ["no", "yes"], ["B", "A"]),
    ]


def test_the_language_of_mmbench_changes_what_is_asked(model: Path, tmp_path: Path):
    write_mmbench_cn(tmp_path)
    (table,) = (tmp_path / "mmbench_cn").glob("*.tsv")
    options = vqa_parser("x", "x", str(table), "v1", 4).parse_args(["--model-path", str(model)])
    options.single_pred_prompt, options.all_rounds, options.lang = True, False, "cn"
    assert model_vqa_mmbench._questions(options)[0].text.endswith(f"\n{CHINESE_LETTER_PROMPT}")
    options.lang = "en"
    assert model_vqa_mmbench._questions(options)[0].text.endswith(f"\n{LETTER}")


@pytest.mark.parametrize(
    ("command", "question_file", "template", "new_tokens", "more"),
    [
        (model_vqa, "tables/question.jsonl", "llava_v1", 1024, {}),
        (model_vqa_loader, "tables/question.jsonl", "llava_v1", 128, {}),
        (
            model_vqa_science,
            "tables/question.json",
            "llava_v0",
            1024,
            {"single_pred_prompt": False, "answer_prompter": False},
        ),
        (
            model_vqa_mmbench,
            "tables/question.jsonl",
            "llava_v1",
            1024,
            {"single_pred_prompt": False, "all_rounds": False, "lang": "en"},
        ),
    ],
)
def test_defaults_are_llavas(command: Any, question_file: str, template: str, new_tokens: int, more: dict[str, Any]):
    options = vars(command.parser().parse_args(["--model-path", "m"]))
    llavas = {
        "model_base": None,
        "image_folder": "",
        "question_file": question_file,
        "answers_file": "answer.jsonl",
        "conv_mode": None,
        "usual_conv_mode": template,
        "num_chunks": 1,
        "chunk_idx": 0,
        "temperature": 0.2,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": new_tokens,
    } | more
    assert {name: options[name] for name in llavas} == llavas


def test_what_does_not_fit_is_a_sentence(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    questions = write_squares(tmp_path, count=3)
    words = common(model, questions, tmp_path / "squares" / "images", tmp_path / "a.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question_id": 1}\n')
    for more, reason in (
        (["--question-file", "nowhere.jsonl"], "There is no question file 'nowhere.jsonl'; give it as --question-file"),
        (["--question-file", str(broken)], "has no field"),
        (["--num-chunks", "0"], "--num-chunks is 0"),
        (["--chunk-idx", "1"], "--chunk-idx is 1, but there are 1 chunks"),
        (["--conv-mode", "plain"], "has no roles to ask in"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--model-path", str(tmp_path)], "has no config.json"),
    ):
        assert model_vqa.main([*words, *more]) == 2, more
        assert reason in capsys.readouterr().err, more


# === Scripts ===


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_each_script_runs_its_benchmark(name: str, tmp_path: Path):
    words = Shell(tmp_path / "bin", {}).command(f"scripts/v1_5/eval/{name}.sh")
    assert words[:3] == ["python", "-m", "llava.eval.run"]
    options = parse(words[3:])
    assert options.benchmarks == SCRIPTS[name] and options.model_path == "liuhaotian/llava-v1.5-7b"
    assert (options.conv_mode, options.temperature, options.num_gpus, options.batch_size) == (None, 0, 1, 1)
    assert options.compression is None and options.judge is None
    assert options.eval_folder == "./playground/data/eval"


def test_scripts_take_variables_words_and_all_gpus(tmp_path: Path):
    script = "scripts/v1_5/eval/gqa.sh"
    shell = Shell(tmp_path / "bin", nvidia(8))
    assert parse(shell.command(script)[3:]).num_gpus == 8
    assert parse(shell.command(script, CUDA_VISIBLE_DEVICES="2,5")[3:]).num_gpus == 2
    assert parse(Shell(tmp_path / "amd", amd(4)).command(script)[3:]).num_gpus == 4
    given = {
        "MODEL_BASE": "b",
        "COMPRESSION": "duet-64",
        "EVAL_FOLDER": "/my data",
        "OUTPUT": "/o",
        "CONV_MODE": "v0",
        "TEMPERATURE": "0.5",
        "MAX_NEW_TOKENS": "9",
        "BATCH_SIZE": "32",
        "NUM_GPUS": "3",
        "LOADER_WORKERS": "2",
        "DTYPE": "bfloat16",
        "SEED": "5",
        "LIMIT": "10",
        "JUDGE": "0",
        "PYTHON": "python3",
    }
    words = shell.command(script, "my/model", "--num_beams", "2", "--limit", "7", MODEL="other", **given)
    options = parse(words[3:])
    assert words[0] == "python3" and options.model_path == "my/model"
    assert (options.model_base, options.compression, options.eval_folder) == ("b", "duet-64", "/my data")
    assert (options.output, options.conv_mode, options.temperature) == ("/o", "v0", 0.5)
    assert (options.max_new_tokens, options.batch_size, options.num_gpus, options.loader_workers) == (9, 32, 3, 2)
    assert (options.dtype, options.seed, options.limit, options.judge, options.num_beams) == (
        "bfloat16",
        5,
        7,
        False,
        2,
    )
    assert parse(shell.command(script, "--judge", JUDGE="1", MODEL="other")[3:]).model_path == "other"


def test_scripts_refuse_and_explain(tmp_path: Path):
    shell = Shell(tmp_path / "bin", {})
    status, _, err = shell.run("scripts/v1_5/eval/pope.sh", BATCH_SIZE="many")
    assert status == 2 and "BATCH_SIZE is 'many'" in err
    status, _, err = shell.run("scripts/v1_5/eval/mmvet.sh", JUDGE="yes")
    assert status == 2 and "JUDGE is 'yes'; accepted are 1 and 0" in err
    status, out, _ = shell.run("scripts/v1_5/eval/pope.sh", "--help")
    assert status == 0 and out.startswith("POPE: F1") and "EVAL_FOLDER        benchmarks" in out
    for name in (
        "MODEL",
        "MODEL_BASE",
        "COMPRESSION",
        "EVAL_FOLDER",
        "OUTPUT",
        "CONV_MODE",
        "TEMPERATURE",
        "MAX_NEW_TOKENS",
        "BATCH_SIZE",
        "NUM_GPUS",
        "LOADER_WORKERS",
        "DTYPE",
        "SEED",
        "LIMIT",
        "JUDGE",
        "PYTHON",
        "DRY_RUN",
    ):
        assert re.search(rf"^ *([A-Z_]+, )*{name}\b", out, re.MULTILINE), name
