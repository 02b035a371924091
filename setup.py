"""Install the commands in bin/ under their own names, and their man pages; pyproject.toml contains everything else."""

from glob import glob

from setuptools import setup

setup(scripts=sorted(glob("bin/*.py")), data_files=[("share/man/man1", sorted(glob("man/*.1")))])
