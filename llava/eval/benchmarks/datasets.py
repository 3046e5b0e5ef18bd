"""Data files of each benchmark: source, place in the evaluation folder, and number of questions.

Places are those of LLaVA's `docs/Evaluation.md` and, for videos, of Video-LLaVA's `TRAIN_AND_VALIDATE.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EVAL_ZIP = "https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy/view?usp=sharing"
_FROM_ZIP = "LLaVA's eval.zip, unpacked into the evaluation folder"
_COCO = "http://images.cocodataset.org/zips"
_VQA = "https://visualqa.org/download.html"
_VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final"
_GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"
_SCIENCE_QA = "https://scienceqa.s3.us-west-1.amazonaws.com/images"
_TEXT_VQA = "https://dl.fbaipublicfiles.com/textvqa"
_SEED_BENCH = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
_DRIVE, _VIEW = "https://drive.google.com/file/d", "view?usp=drive_link"
_VIDEO_LICENCE = "of the videos' owners; for research"
_VIDEO_CHATGPT = "https://github.com/mbzuai-oryx/Video-ChatGPT/blob/main/quantitative_evaluation/README.md"
_JUDGE_NOTE = "Its headline needs a language model as judge."


@dataclass(frozen=True)
class DatasetPart:
    """One file or folder that a benchmark needs.

    Attributes:
        places: relative to the evaluation folder; the first is the usual one, any will do.
        what: holds what.
        source: which download, and what to do with it.
        url: address of the download.
        optional: fewer questions are asked without it, but the paper's number does not need it.
    """

    places: tuple[str, ...]
    what: str
    source: str
    url: str
    optional: bool = False


@dataclass(frozen=True)
class Dataset:
    """What one benchmark needs.

    Attributes:
        parts: files and folders, the questions first.
        questions: how many there are; None where no number is published.
        within: only questions whose image lies in this folder count towards `questions`.
        licence: licence of the data, as its authors give it.
        notes: sentences that a user has to know.
        instead: parts that will do where the questions are missing, because a split with answers is read then.
        questions_instead: how many those are.
    """

    parts: tuple[DatasetPart, ...]
    questions: int | None
    within: str = ""
    licence: str = "see its site"
    notes: tuple[str, ...] = ()
    instead: tuple[DatasetPart, ...] = ()
    questions_instead: int | None = None


UNKNOWN = Dataset((), None, notes=("Its package does not say where the data comes from.",))
"""What is known of a benchmark that tells nothing else."""


def _from_zip(place: str, what: str = "questions") -> DatasetPart:
    return DatasetPart((place,), what, _FROM_ZIP, EVAL_ZIP)


def _itself(place: str, what: str, url: str) -> DatasetPart:
    """A part that is downloaded as it is."""
    return DatasetPart((place,), what, "the file itself", url)


def _unpacked(place: str, what: str, url: str) -> DatasetPart:
    """A part of an archive that is unpacked beside it."""
    folder, _, _ = place.rpartition("/")
    return DatasetPart((place,), what, f"{url.rpartition('/')[2]}, unpacked into {folder}", url)


def _several(contents: Mapping[str, str], folders: Sequence[str], source: str, url: str) -> tuple[DatasetPart, ...]:
    """Parts of one download, each in one of several folders: what they hold, by name."""
    places = {name: tuple(f"{folder}/{name}" for folder in folders) for name in contents}
    return tuple(DatasetPart(places[name], what, source, url) for name, what in contents.items())


def _video(folder: str, videos: str, url: str, questions: int | None) -> Dataset:
    contents = {"test_q.json": "questions", "test_a.json": "right answers", videos: "videos"}
    folders = (f"GPT_Zero_Shot_QA/{folder}", folder)
    parts = _several(contents, folders, f"{folder}, unpacked into GPT_Zero_Shot_QA", url)
    return Dataset(parts, questions, licence=_VIDEO_LICENCE, notes=(_JUDGE_NOTE,))


def _generation(file: str) -> Dataset:
    """One question file of Video-ChatGPT's benchmarks of generation."""
    folder = "Video_ChatGPT"
    source = "the benchmark's question files and videos, as its document names them"
    parts = (
        DatasetPart((f"{folder}/Benchmarking_QA/{file}", f"{folder}/{file}"), "questions", source, _VIDEO_CHATGPT),
        DatasetPart((f"{folder}/Test_Videos",), "videos", source, _VIDEO_CHATGPT),
    )
    return Dataset(parts, None, licence=_VIDEO_LICENCE, notes=(_JUDGE_NOTE,))


def _mmbench(place: str, questions: int | None) -> Dataset:
    url = f"https://download.openmmlab.com/mmclassification/datasets/mmbench/{place.rpartition('/')[2]}"
    return Dataset((_itself(place, "questions with their rotations, images and right answers", url),), questions)


DATASETS: dict[str, Dataset] = {
    "gqa": Dataset(
        (
            _from_zip("gqa/llava_gqa_testdev_balanced.jsonl"),
            _unpacked("gqa/data/images", "images", f"{_GQA}/images.zip"),
            *_several(
                {"testdev_balanced_questions.json": "right answers"},
                ("gqa/data", "gqa/data/questions", "gqa/data/questions1.2"),
                "questions1.2.zip, unpacked into gqa/data",
                f"{_GQA}/questions1.2.zip",
            ),
        ),
        12578,
        notes=("GQA's own eval.zip is needed only for its script: https://nlp.stanford.edu/data/gqa/eval.zip.",),
    ),
    "pope": Dataset(
        (
            _from_zip("pope/llava_pope_test.jsonl"),
            *_several(
                {f"coco_pope_{split}.json": "labels" for split in ("adversarial", "popular", "random")},
                ("pope/coco",),
                "the folder output/coco of POPE's repository at this commit, as pope/coco",
                "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco",
            ),
            _unpacked("pope/val2014", "images", f"{_COCO}/val2014.zip"),
        ),
        8910,
        notes=("Other commits of POPE's repository hold other questions.",),
    ),
    "mme": Dataset(
        (
            _from_zip("MME/llava_mme.jsonl"),
            DatasetPart(
                ("MME/MME_Benchmark_release_version",),
                "images and right answers, one folder a subtask",
                "MME_Benchmark_release_version, as its authors' page says how to get it, unpacked into MME",
                "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
            ),
        ),
        2374,
        licence="academic research only; not to be passed on without its authors' leave",
        notes=("The images of landmarks and artworks have to be fetched as the readme files in their folders say.",),
    ),
    "sqa": Dataset(
        (
            _from_zip("scienceqa/llava_test_CQM-A.json"),
            _unpacked("scienceqa/images/test", "images", f"{_SCIENCE_QA}/test.zip"),
            *(
                DatasetPart(
                    (f"scienceqa/{name}",),
                    what,
                    f"{name} from the folder data/scienceqa of ScienceQA's repository",
                    "https://github.com/lupantech/ScienceQA",
                )
                for name, what in (("problems.json", "right answers"), ("pid_splits.json", "splits"))
            ),
        ),
        4241,
        licence="CC BY-NC-SA 4.0",
    ),
    "textvqa": Dataset(
        (
            _from_zip("textvqa/llava_textvqa_val_v051_ocr.jsonl", "questions with OCR tokens"),
            _itself("textvqa/TextVQA_0.5.1_val.json", "right answers", f"{_TEXT_VQA}/data/TextVQA_0.5.1_val.json"),
            _unpacked("textvqa/train_images", "images", f"{_TEXT_VQA}/images/train_val_images.zip"),
        ),
        5000,
    ),
    "mmbench": _mmbench("mmbench/mmbench_dev_20230712.tsv", 4377),
    "mmbench_cn": _mmbench("mmbench_cn/mmbench_dev_cn_20231003.tsv", None),
    "vqav2": Dataset(
        (
            _from_zip("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl"),
            _from_zip("vqav2/llava_vqav2_mscoco_test2015.jsonl", "questions that a submission lists"),
            _unpacked("vqav2/test2015", "images", f"{_COCO}/test2015.zip"),
        ),
        107394,
        licence="annotations CC BY 4.0; images of their owners on Flickr",
        notes=(
            "Scored by its server: https://eval.ai/web/challenges/challenge-page/830/my-submission.",
            "Without the first file, the validation split is read, which can be scored here: "
            "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and val2014 in vqav2.",
        ),
        instead=(
            DatasetPart(
                ("vqav2/v2_OpenEnded_mscoco_val2014_questions.json",), "questions", "validation questions", _VQA
            ),
            DatasetPart(("vqav2/v2_mscoco_val2014_annotations.json",), "right answers", "validation annotations", _VQA),
            _unpacked("vqav2/val2014", "images", f"{_COCO}/val2014.zip"),
        ),
        questions_instead=214354,
    ),
    "vizwiz": Dataset(
        (
            _from_zip("vizwiz/llava_test.jsonl"),
            _unpacked("vizwiz/test", "images", f"{_VIZWIZ}/images/test.zip"),
        ),
        8000,
        notes=(
            "Scored by its server: https://eval.ai/web/challenges/challenge-page/1911/my-submission.",
            "Without the first file, the validation split is read and scored here: vizwiz/val.json and vizwiz/val.",
        ),
        instead=(
            DatasetPart(("vizwiz/val.json",), "questions", "Annotations.zip", f"{_VIZWIZ}/vqa_data/Annotations.zip"),
            DatasetPart(("vizwiz/val",), "images", "images of the validation split", "https://vizwiz.org"),
        ),
        questions_instead=4319,
    ),
    "seed": Dataset(
        (
            _from_zip("seed_bench/llava-seed-bench.jsonl"),
            DatasetPart(
                ("seed_bench/SEED-Bench.json",), "right answers", "SEED-Bench.json, put into seed_bench", _SEED_BENCH
            ),
            DatasetPart(
                ("seed_bench/SEED-Bench-image",),
                "images",
                "SEED-Bench-image.zip, unpacked into seed_bench",
                _SEED_BENCH,
            ),
            DatasetPart(
                ("seed_bench/SEED-Bench-video-image",),
                "middle frames of videos",
                "the frames that seed_bench/extract_video_frames.py of LLaVA's eval.zip takes out of the videos",
                "https://github.com/AILab-CVC/SEED-Bench/blob/main/DATASET.md",
                optional=True,
            ),
        ),
        14233,
        within="SEED-Bench-image",
        licence="CC BY-NC 4.0",
        notes=(
            "14233 is the number of questions about images, which SEED-I is the accuracy on.",
            "Without SEED-Bench-video-image, only these are asked.",
        ),
    ),
    "mmvet": Dataset(
        (
            *_several({"llava-mm-vet.jsonl": "questions"}, ("mm-vet", "mmvet"), _FROM_ZIP, EVAL_ZIP),
            *_several(
                {"images": "images", "mm-vet.json": "right answers"},
                ("mm-vet", "mmvet", "mm-vet/mm-vet", "mmvet/mm-vet"),
                "mm-vet.zip, unpacked into the evaluation folder",
                "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip",
            ),
        ),
        218,
        notes=(_JUDGE_NOTE,),
    ),
    "llava_bench": Dataset(
        _several(
            {
                "questions.jsonl": "questions",
                "context.jsonl": "captions that the judge reads",
                "answers_gpt4.jsonl": "answers to compare with",
                "images": "images",
            },
            ("llava-bench-in-the-wild",),
            "the data set, unpacked as llava-bench-in-the-wild",
            "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
        ),
        60,
        notes=(_JUDGE_NOTE,),
    ),
    "msvd": _video("MSVD_Zero_Shot_QA", "videos", f"{_DRIVE}/1_q4eiSdb7i8P3Hmh4lCfgY1uBGyzU_7X/{_VIEW}", 13157),
    "msrvtt": _video("MSRVTT_Zero_Shot_QA", "videos/all", f"{_DRIVE}/1yXh9lz7flQ5Ui2IRSd6Qi6RqSEeUJwl3/{_VIEW}", 72821),
    "tgif": _video("TGIF_Zero_Shot_QA", "mp4", f"{_DRIVE}/1so6L9rg_gdC8Segur7rKML-ffd4Ix_I6/{_VIEW}", None),
    "activitynet": _video(
        "Activitynet_Zero_Shot_QA", "all_test", "https://pan.baidu.com/s/1d_AVx9Mz_57nA3exhQZGyA?pwd=9amr", 8000
    ),
    "vcg_generic": _generation("generic_qa.json"),
    "vcg_temporal": _generation("temporal_qa.json"),
    "vcg_consistency": _generation("consistency_qa.json"),
}
"""By name of the benchmark."""
