"""Tabletop, the built-in dataset: pictures of toys on a table, captions, questions.

scene.py       the toys and their positions, and which scenes belong to which split
render.py      a scene as an image of any size
templates.py   words with tags, and phrases that captions and questions share
language.py    a scene as a caption, or a question and its answer
questions.py   questions with one right answer, and claims for yes and no
dataset.py     Tabletop, the DataSource
benchmarks.py  MME, GQA, OK-VQA and ScienceQA of these scenes, in their own formats
"""

from hive_jax.data.tabletop.dataset import Tabletop

__all__ = ["Tabletop"]
