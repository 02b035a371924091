"""Install the commands in bin/ under their own names; pyproject.toml contains everything else."""

from glob import glob

from setuptools import setup

setup(scripts=sorted(glob("bin/*.py")))
