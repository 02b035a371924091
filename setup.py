"""The commands in bin/ are installed under their own names; everything else stands in pyproject.toml."""

from glob import glob

from setuptools import setup

setup(scripts=sorted(glob("bin/*.py")))
