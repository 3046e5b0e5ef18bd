"""One engine: programs give the same text, and a family from outside the package is asked as it says."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import yaml
from eval_small import read_lines
from PIL import Image
from tiny_folder import write_model, write_pictures
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.compression.salience import QueryRole
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data import families
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families.base import Collator, ModelInputs, Sample
from llava.data.families.llava import LlavaInputs
from llava.data.frames import Frames
from llava.data.records import Record
from llava.data.tokenization import EncodedText, encode_prompt
from llava.eval import model_vqa_loader, run_llava, vlmevalkit
from llava.inference.batches import Prompt, Task, batches
from llava.inference.chat import Chat
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.mm_utils import process_images
from llava.model.splice import PlanSettings
from llava.serve import cli
from playground.quickstart import evaluate as quickstart

QUESTION = "Where is the seven?"
NEW = quickstart.GREEDY.max_new_tokens or 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3)


def by_hand(engine: Engine, question: str, files: Sequence[str]) -> str:
    """The greedy answer, each token from a forward of the whole prompt without a cache."""
    encoded = encode_prompt([question], engine.tokenizer, "vicuna_v1").tensors()
    ids, votes = encoded["input_ids"][None], encoded["query_mask"][None]
    pixels = process_images([Image.open(name) for name in files], engine.inputs.processor, engine.model.config)
    for _ in range(NEW):
        labels = torch.where(torch.arange(ids.shape[1]) < len(encoded["input_ids"]), IGNORE_INDEX, ids)
        with torch.no_grad():
            given = {"images": pixels, "query_mask": votes, "labels": labels, "return_logits": True}
            token = engine.model(ids, **given).logits[:, -1:].argmax(-1)
        if token.item() == engine.tokenizer.eos_token_id:
            break
        ids, votes = torch.cat([ids, token], 1), torch.cat([votes, torch.zeros_like(token)], 1)
    return engine.tokenizer.decode(ids[0, len(encoded["input_ids"]) :], skip_special_tokens=True).strip()


def test_a_question_of_more_tokens_than_the_model_can_number_is_refused_to_harnesses_too(folder: Path) -> None:
    """lmms-eval and VLMEvalKit got an answer at positions that no training has seen."""
    engine = Engine.open(ModelSpec(str(folder), dtype="float32"), "cpu")
    with pytest.raises(ValueError, match=rf"takes \d+ tokens, but the model can number {engine.inputs.limit}"):
        engine.answer([Prompt("word " * engine.inputs.limit)], GenerationSettings(0, max_new_tokens=1))


def test_five_programs_give_the_same_answer_to_the_same_question(
    folder: Path,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture, asked = Path(pictures[0]), {"question_id": 1, "image": "0.png", "text": QUESTION, "answer": "here"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(asked) + "\n")
    (tmp_path / "budget.yaml").write_text(yaml.safe_dump(tiny.DUET))
    model = ["--model-path", str(folder)]
    settings = ["--conv-mode", "vicuna_v1", "--temperature", "0", "--max_new_tokens", str(NEW), "--device", "cpu"]
    shown = ["--image-file", str(picture)]
    files = ["--questions", str(tmp_path / "questions.jsonl"), "--image-folder", str(picture.parent)]
    said = {}
    results = quickstart.evaluate(
        quickstart.parse(
            [
                *model,
                *files,
                "--compression",
                str(tmp_path / "budget.yaml"),
                "--out",
                str(tmp_path / "results.json"),
                "--template",
                "vicuna_v1",
                "--no-blank",
                "--traces",
                "0",
            ]
        )
    )
    said["quickstart"] = results.settings[0].answers[0]
    words = ["--question-file", str(tmp_path / "questions.jsonl"), "--answers-file", str(tmp_path / "a.jsonl")]
    (tmp_path / "questions.jsonl").write_text(json.dumps({k: v for k, v in asked.items() if k != "answer"}) + "\n")
    assert model_vqa_loader.main([*model, *settings, *words, "--image-folder", str(picture.parent)]) == 0
    said["evaluation"] = read_lines(tmp_path / "a.jsonl")[0]["text"]
    capsys.readouterr()
    assert run_llava.main([*model, *settings, *shown, "--query", QUESTION]) == 0
    said["run_llava"] = capsys.readouterr().out.strip()
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\n"))
    assert cli.main([*model, *settings, *shown]) == 0
    said["chat"] = capsys.readouterr().out.strip()
    adapter = vlmevalkit.DuetLlava(str(folder), conv_mode="vicuna_v1", device="cpu", max_new_tokens=NEW)
    message = [{"type": "image", "value": str(picture)}, {"type": "text", "value": QUESTION}]
    said["harness"] = adapter.generate_inner(message)
    engine = Engine.open(ModelSpec(str(folder)), "cpu")
    expected = by_hand(engine, f"<image>\n{QUESTION}", pictures[:1])
    assert expected and said == dict.fromkeys(said, expected)
    task = Task((0,), (Prompt(QUESTION, (picture,)),))
    (outcome,) = engine.answer_tasks([task], GenerationSettings(0, max_new_tokens=2))
    assert outcome.visual_tokens == {0: results.settings[0].average_tokens}, "counted, and traced by the quickstart"


class Mirrored(ModelInputs):
    """A made-up family: a template of its own, the last token votes, each image has its mirror image beside it."""

    model_types = ("mirrored",)

    @classmethod
    def template_for(cls, config: Any, model_name: str, asked: str | None = None, usual: str | None = None) -> str:
        return "questions"

    @property
    def stop(self) -> str | None:
        return "\n"

    def image(self, picture: Image.Image, what: str) -> Tensor:
        both = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
        return torch.as_tensor(process_images(both, self.processor, self.config))

    def video(self, frames: Frames, what: str) -> list[Tensor]:
        return [self.image(frames.pictures[0], what)]

    def tokens(self, medium: Tensor, settings: PlanSettings) -> list[int]:
        return [len(medium) * count for count in settings.counts(medium)]

    def question(self, text: str, media: Sequence[Any]) -> str:
        return "@" * len(media) + text

    def marked(self, turn: str) -> str:
        return turn.replace("<image>\n", "@")

    @property
    def key(self) -> str:
        return "mirrored"

    def encode(
        self,
        turns: Sequence[str],
        with_media: bool,
        find_salient: Any = None,
        system: str | None = None,
        ask: bool = False,
    ) -> EncodedText:
        text = "".join(f"{'QA'[place % 2]}: {turn}\n" for place, turn in enumerate(turns)) + "A:" * ask
        ids = [self.tokenizer.bos_token_id]
        for number, part in enumerate(text.split("@")):
            ids += [IMAGE_TOKEN_INDEX] * bool(number) + self.tokenizer(part, add_special_tokens=False).input_ids
        return EncodedText(ids, [IGNORE_INDEX] * len(ids), [0] * (len(ids) - 1) + [int(QueryRole.LAST)])

    def collator(self, image_size: int | None = None, settings: Any = None) -> Collator:
        def collate(samples: Sequence[Sample]) -> dict[str, Any]:
            rows = {name: [sample[name] for sample in samples] for name in ("input_ids", "query_mask")}
            padded = {name: pad_sequence(row, True, 0, "left") for name, row in rows.items()}
            ones = [torch.ones_like(row) for row in rows["input_ids"]]
            crops = [crop for sample in samples for crop in sample["images"]]
            images = {"images": torch.stack(crops)} if crops else {}
            return (
                padded | images | {"attention_mask": pad_sequence(ones, True, 0, "left"), "labels": padded["input_ids"]}
            )

        return collate


def test_a_family_from_outside_is_asked_as_it_says(folder: Path, pictures: list[str]) -> None:
    native = Engine.open(ModelSpec(str(folder)), "cpu")
    native.model.config.model_type = "mirrored"
    engine = Engine(native.model, native.tokenizer, native.inputs.processor)
    assert isinstance(engine.inputs, Mirrored) and isinstance(native.inputs, LlavaInputs)
    prompts = [
        Prompt("What is red?", (Path(pictures[0]),)),
        Prompt("Why?"),
        Prompt("What?", tuple(map(Path, pictures))),
    ]
    settings, expected = GenerationSettings(0, max_new_tokens=6), []
    for prompt in prompts:
        sample = engine.sample(prompt)
        length = engine.inputs.length(sample, PlanSettings(16, "last"))
        assert length == len(sample["input_ids"]) + 31 * len(prompt.images)
        ids = engine.model.generate(
            sample["input_ids"][None],
            images=torch.stack(sample["images"]) if sample["images"] else None,
            query_mask=sample["query_mask"][None],
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
        expected.append(engine.tokenizer.decode(ids[0], skip_special_tokens=True).split("\n")[0].strip())
    assert engine.answer(prompts, settings) == expected and len(set(expected)) == 3
    (outcome,) = engine.answer_tasks(batches(prompts, range(3), 3), settings)
    assert [outcome.texts[outcome.task.numbers.index(number)] for number in range(3)] == expected
    shows = [bool(outcome.task.prompts[row].images) for row in range(3)]
    assert [row in outcome.visual_tokens for row in range(3)] == shows
    film = Prompt("What happens?", video=Path(pictures[0]).parent)
    assert [len(asked.media(film)) for asked in (engine, native)] == [1, 8], (
        "a family says what a video's frames become"
    )
    chat = Chat.over(engine, settings)
    assert chat.answer("What is red?", [Image.open(pictures[0])]) == expected[0]
    assert chat.usage is not None and chat.usage.patches == 32 and max(chat.usage.visual_tokens) == 20
    record = Record("a", ("<image>\nWhat is red?", "This."), (pictures[0],))
    data = LazySupervisedDataset([record], engine.inputs, DataConfig(99, 20, image_folder=Path(pictures[0]).parent))
    taught, told = data[0], engine.sample(prompts[0])
    assert torch.equal(taught["images"][0], told["images"][0]) and taught["images"][0].shape == (2, 3, 56, 56)
    assert taught["input_ids"].tolist()[:8] == told["input_ids"].tolist()[:8]


def test_a_model_without_a_family_and_a_family_without_a_type_are_refused() -> None:
    with pytest.raises(ValueError, match="no family for models of type 'bert'; known are llava_llama"):
        families.family_of(SimpleNamespace(model_type="bert"))
    with pytest.raises(TypeError, match="ModelInputs does not say model_types"):
        families.register_inputs(ModelInputs)


def test_another_family_can_take_the_place_of_one() -> None:
    class Other(LlavaInputs):
        model_types = ("mirrored",)

    assert families.family_of(SimpleNamespace(model_type="mirrored")) is Other
    families.register_inputs(Mirrored)
    assert families.family_of(SimpleNamespace(model_type="mirrored")) is Mirrored
    assert families.family_of(SimpleNamespace(model_type="llava_llama")) is LlavaInputs
