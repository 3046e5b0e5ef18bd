"""Numbers and strings that LLaVA's files, checkpoints and users agree on."""

IGNORE_INDEX = -100
IMAGE_TOKEN_INDEX = -200

DEFAULT_IMAGE_TOKEN = "<image>"
WRITTEN_IMAGE_TOKEN = "\\<image>"
"""How somebody writes the word `<image>` in a question without meaning an image."""
LITERAL_IMAGE_TOKEN = "\ufdd0image>"
"""The word `<image>` inside a conversation, where no image goes: as long, and tokenised as it (U+FDD0 is unused)."""
WRITTEN_VIDEO_TOKEN = "\\<video>"
LITERAL_VIDEO_TOKEN = "\ufdd0video>"
"""The same of the word `<video>`."""
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
DEFAULT_VIDEO_TOKEN = "<video>"
DEFAULT_VID_START_TOKEN = "<vid_start>"
DEFAULT_VID_END_TOKEN = "<vid_end>"
MAX_VIDEO_LENGTH = 1
"""Videos that Video-LLaVA's program takes in a turn that starts with a mark; more are its error."""
MAX_IMAGE_LENGTH = 16
"""Images to which it cuts a run of marks at the start of a turn."""
