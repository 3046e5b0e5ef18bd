"""Adds the packages that no static table can describe: presets and the paper's tables, which live under configs."""

from setuptools import find_packages, setup

CONFIGS = {"llava.compression.presets": "configs/compression", "llava.eval.paper": "configs/paper"}

setup(
    packages=[*find_packages(include=["llava", "llava.*"]), *CONFIGS],
    package_dir=CONFIGS,
)
