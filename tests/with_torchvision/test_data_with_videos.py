"""The tests of every family's training data once more, with videos for those whose processors need torchvision."""

from __future__ import annotations

from test_backbones_data import (
    media,
    opened,
    test_a_medium_that_cannot_be_read_leaves_a_sample_that_teaches_nothing,
    test_a_sample_is_cut_at_any_length_and_its_media_are_whole_or_gone,
    test_media_stand_where_they_are_marked_and_a_batch_is_its_samples,
    test_videos_that_the_model_is_not_shown_stop_the_run_before_it_starts,
)

__all__ = [
    "media",
    "opened",
    "test_a_medium_that_cannot_be_read_leaves_a_sample_that_teaches_nothing",
    "test_a_sample_is_cut_at_any_length_and_its_media_are_whole_or_gone",
    "test_media_stand_where_they_are_marked_and_a_batch_is_its_samples",
    "test_videos_that_the_model_is_not_shown_stop_the_run_before_it_starts",
]
