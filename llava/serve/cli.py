"""Chat with a model in a terminal, or answer questions from a pipe.

python -m llava.serve.cli --model-path CHECKPOINT --image-file photo.jpg --compression duet-192 --show-tokens
printf 'What is this?\\nWhere is it?\\n' | python -m llava.serve.cli --model-path CHECKPOINT --image-file photo.jpg
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from PIL import Image

from llava.common.atomic_write import whole_file
from llava.common.image_opening import opening_of
from llava.common.outputs import require_apart, require_folder
from llava.common.outside_files import in_words
from llava.common.path_flags import FILE_TO_WRITE
from llava.common.program import as_program
from llava.common.shown import say
from llava.compression.config import CompressionConfig
from llava.conversation import conv_templates, get_template
from llava.cost.flops import describe, visual_tokens_per_layer
from llava.cost.seen_media import SeenMedium, seen_by, usual_medium
from llava.data.families.processor import OWN_TEMPLATE
from llava.data.frames import Frames
from llava.inference.chat import Chat, Shown
from llava.inference.loading_flags import (
    add_asking_flags,
    add_budget_flags,
    add_loading_flags,
    add_media_flags,
    asked_budget,
    asked_settings,
    check_device,
    open_engine,
)
from llava.inference.places import typed_place
from llava.inference.typed_images import ANY_ADDRESSES, as_seen, open_image, read_image
from llava.inference.typed_videos import checked_video, read_video
from llava.mm_utils import aspect_ratio_of
from llava.model.trace import check_traced
from llava.serve.overlay import draw_overlay
from llava.serve.typed_lines import check_line, typed_lines

COMMANDS = """commands in the chat:
  /image PATH          show an image (path or http(s) address) with the next question
  /video PATH          show a video (a file, an animation, or a folder of frames) with the next question
  /reset               start a new conversation, without images
  /compression NAME    another budget from the next question on: a preset or a YAML file
  /tokens              what the last answer took: visual tokens by layer, and the KV cache
  /exit                leave; so does the end of the input
Paths may be in quotes, begin with ~ or be file:// addresses. A question that begins with the name of a command is asked
with a second slash in front: //tokens are what?
Ctrl-C ends an answer early. A question is one line; <image> in it says where an image goes (<video>, where a video
does, of models made for videos), else they come first; \\<image> is the word itself. Marks such as </s> are text like
any other. In answers, characters that act on a terminal are shown as escapes, such as \\x1b."""
KNOWN = ("/image", "/video", "/reset", "/compression", "/tokens", "/exit")
_MISTYPED = 0.7


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING)
    try:
        session = Session.open(options)
    except (ValueError, OSError) as error:
        say(in_words(error), file=sys.stderr)
        return 2
    session.run(sys.stdin)
    return 0


class Session:
    """A chat on standard input and output.

    Args:
        chat: the conversation.
        options: options of the command line.
        images: images and videos to be shown with the first question.
    """

    def __init__(self, chat: Chat, options: argparse.Namespace, images: list[Shown]) -> None:
        self.chat = chat
        self.options = options
        self.pending = images
        self.opening = opening_of(chat.model.config, options.image_opening)

    @classmethod
    def open(cls, options: argparse.Namespace) -> Session:
        """Check the options and load the model.

        Raises:
            ValueError: if an option does not fit, an image cannot be read, or the folder holds no model.
        """
        _check(options)
        pictures = {place: open_image(place, ANY_ADDRESSES) for place in options.image_file}
        for place in options.video_file:
            checked_video(place)
        settings = asked_settings(options)
        engine = open_engine(options)
        chat = Chat.over(engine, settings, asked_budget(options, engine.model), options.reencode)
        if options.save_overlay:
            check_traced(engine.model)
        ratio, opening = aspect_ratio_of(engine.model.config), engine.inputs.image_opening
        shown: list[Shown] = [as_seen(pictures[place], place, opening, ratio) for place in options.image_file]
        return cls(chat, options, shown + [read_video(place, engine.inputs) for place in options.video_file])

    def run(self, source: TextIO) -> None:
        """Answer line by line until the input ends or `/exit`."""
        roles = get_template(self.chat.conv_mode).roles if self.chat.conv_mode in conv_templates else ("",)
        for line in typed_lines(source, f"{roles[0].strip() or 'USER'}: "):
            command, rest = as_command(line)
            if command == "/exit":
                return
            try:
                if command:
                    self._command(command, rest)
                elif rest:
                    self._ask(rest)
            except KeyboardInterrupt:
                print(flush=True)
            except (ValueError, OSError, RuntimeError) as error:
                say(in_words(error), file=sys.stderr)
            except MemoryError:
                print("That takes more memory than there is; /reset starts afresh.", file=sys.stderr, flush=True)

    def _ask(self, question: str) -> None:
        check_line(question)
        before = len(self.chat.turns)
        try:
            for piece in self.chat.ask(question, self.pending):
                say(piece, end="")
        finally:
            if len(self.chat.turns) > before:  # also where Ctrl-C ended the answer
                self.pending = []
        print(flush=True)
        if self.options.debug:
            turns = [text for turn in self.chat.turns for text in turn]
            say({"prompt": self.chat.engine.inputs.written(turns[:-1]), "outputs": turns[-1]}, file=sys.stderr)
        if self.options.show_tokens:
            print(self.chat.usage, flush=True)
        if self.options.save_overlay and self.chat.images:
            self._save_overlay(self.options.save_overlay)

    def _command(self, command: str, rest: str) -> None:
        """Do what a line that begins with a slash asks for.

        Raises:
            ValueError: if it cannot be done; says why.
        """
        if command == "/reset":
            self.chat.reset()
            self.pending = []
        elif command in ("/image", "/video"):
            self._add(command, rest)
        elif command == "/compression":
            self._choose(rest)
        elif command == "/tokens":
            print(self.chat.usage or "Nothing has been answered yet.", flush=True)
        else:
            raise ValueError(
                f"There is no command {command!r}; a second slash in front makes it a question.\n{COMMANDS}"
            )

    def _add(self, command: str, place: str) -> None:
        if not place:
            accepted = "image: /image PATH, or an http(s) address" if command == "/image" else "video: /video PATH"
            raise ValueError(f"Name {'an' if command == '/image' else 'a'} {accepted}.")
        if self.chat.turns and not self.chat.reencode:
            raise ValueError(
                "With --cached, images can be shown with the first question only; /reset starts a new conversation."
            )
        require_apart({"--save-overlay": self.options.save_overlay}, [typed_place(place)])
        if command == "/video":
            self.pending = [*self.pending, read_video(place, self.chat.engine.inputs)]
        else:
            ratio = aspect_ratio_of(self.chat.model.config)
            self.pending = [*self.pending, read_image(place, self.opening, ANY_ADDRESSES, ratio)]
        videos = sum(isinstance(one, Frames) for one in self.pending)
        images = len(self.pending) - videos
        said = [f"{images} image(s)"] * bool(images) + [f"{videos} video(s)"] * bool(videos)
        print(f"{' and '.join(said)} will be shown with the next question.", flush=True)

    def _choose(self, name: str) -> None:
        if not name:
            raise ValueError("Name a budget: /compression NAME, a preset or a YAML file; none switches it off.")
        self.chat.set_compression(typed_place(name))
        print(f"visual tokens of {self._staircase(self.chat.compression)}", flush=True)

    def _staircase(self, compression: CompressionConfig) -> str:
        """Visual tokens by layer of an image, or of what costs are told of in the model's family."""
        model = self.chat.model
        config = model.config.to_dict()
        vision = seen_by(config)
        tokens = visual_tokens_per_layer(compression, len(model.decoder.layers), vision)
        alike = vision == SeenMedium.of(vision.tower)  # all images are of one size to the model
        what = "an image" if alike else f"one {usual_medium(config)}"
        return f"{what} by layer: {describe(tokens)}"

    def _save_overlay(self, path: Path) -> None:
        trace, pixels = self.chat.trace()
        layers = len(self.chat.model.decoder.layers)
        picture = draw_overlay(trace, pixels, self.chat.image_processor, layers)
        with whole_file(path, "wb") as file:
            picture.save(file, format=Image.registered_extensions()[path.suffix.lower()])
        say(f"wrote {path}")


def as_command(line: str) -> tuple[str, str]:
    """A line as a command and what stands behind it; the command is empty for a question, which may begin with a slash.

    A first word that is no command is taken for a mistyped one if it is alone, or close to one and before a single
    word; `//` begins a question.

    Args:
        line: line as it was read.
    """
    line = line.strip().removeprefix("\ufeff").strip()  # some shells begin what they pipe with a byte order mark
    command, *rest = line.split(None, 1) or [""]
    if line.startswith("//"):
        return "", line[1:]
    behind = len(rest[0].split()) if rest else 0
    close = difflib.get_close_matches(command.lower(), KNOWN, cutoff=_MISTYPED)
    mistyped, is_word = behind == 0 or (behind == 1 and close), command[1:].isalpha()
    if command in KNOWN or (command.startswith("/") and mistyped and is_word):
        return command, rest[0] if rest else ""
    return "", line


def _check(options: argparse.Namespace) -> None:
    """Say before the model is loaded what could only fail after an answer.

    Raises:
        ValueError: names the option.
    """
    check_device(options.device)
    if options.conv_mode and options.conv_mode != OWN_TEMPLATE:
        get_template(options.conv_mode)
    if options.compression is not None:
        CompressionConfig.resolve(options.compression)
    path = options.save_overlay
    require_folder("--save-overlay", path)
    if path and path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--save-overlay is {str(path)!r}; it must end in .png, .jpg or .webp.")
    shown = [*options.image_file, *options.video_file]
    require_apart({"--save-overlay": path}, [options.model_path, options.model_base, *shown])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.cli",
        description="Chat with a model. Questions are read line by line, from a terminal or a pipe.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_loading_flags(parser)
    add_media_flags(
        parser,
        images="images of the first question: paths or http(s) addresses; may be given several times",
        videos="videos of the first question, behind its images: files, animations or folders of frames",
    )
    add_asking_flags(parser)
    add_budget_flags(parser)
    _add_ways_to_go_on(parser)
    parser.add_argument("--show-tokens", "--show_tokens", action="store_true", help="after each answer, what it took")
    parser.add_argument(
        "--save-overlay",
        "--save_overlay",
        type=FILE_TO_WRITE,
        metavar="FILE.png",
        help="after each answer, draw which patches were kept, merged and dropped, and until which layer",
    )
    parser.add_argument("--debug", action="store_true", help="log everything, and each prompt with its answer")
    return parser


def _add_ways_to_go_on(parser: argparse.ArgumentParser) -> None:
    """`--reencode` and `--cached`."""
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--reencode",
        action="store_true",
        default=True,
        help="compute the whole conversation for each question, which chooses its own visual tokens (default)",
    )
    again.add_argument(
        "--cached",
        dest="reencode",
        action="store_false",
        help="keep the KV cache: faster, but later questions see the visual tokens that the first one left",
    )


if __name__ == "__main__":
    sys.exit(as_program(main))
