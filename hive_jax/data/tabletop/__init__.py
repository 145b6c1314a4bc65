"""The built-in world: pictures of toys on a table, captions, and questions.

scene.py      what stands where, and which scenes belong to which split
draw.py       a scene as an image of any size
language.py   a scene as captions, questions and answers
source.py     Tabletop, the random-access source of samples
claims.py     pairs of questions to answer with yes and with no, as MME asks
benchmarks.py MME, GQA, OK-VQA and ScienceQA of these scenes, in their own formats
"""

from hive_jax.data.tabletop.dataset import Tabletop

__all__ = ["Tabletop"]
