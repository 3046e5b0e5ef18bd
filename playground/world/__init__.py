"""The world: digits in several colours on photographs, captions, and questions that name a colour or a place."""

from playground.world.language import PLACES, Colour, Digit, Question, ask, describe
from playground.world.photos import PHOTOS, load_photos
from playground.world.scene import CELL, GRID, IMAGE_SIZE, PATCH, Renderer, Scene, draw_scene, split_digits

__all__ = [
    "CELL",
    "GRID",
    "IMAGE_SIZE",
    "PATCH",
    "PHOTOS",
    "PLACES",
    "Colour",
    "Digit",
    "Question",
    "Renderer",
    "Scene",
    "ask",
    "describe",
    "draw_scene",
    "load_photos",
    "split_digits",
]
