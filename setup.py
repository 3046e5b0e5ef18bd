"""Adds one package that no static table can describe: the presets, which live under configs/compression."""

from setuptools import find_packages, setup

PRESETS = "llava.compression.presets"

setup(
    packages=[*find_packages(include=["llava", "llava.*"]), PRESETS],
    package_dir={PRESETS: "configs/compression"},
)
