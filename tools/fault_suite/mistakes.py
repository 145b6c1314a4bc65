"""Mistakes of users: a command, its exit code, and what its message must say.

{folder} is the folder of `write_files`, {run} a finished run in it.
"""

import json
from pathlib import Path

from tools.fault_suite.image_files import encoded, photograph

# Overrides of stage 1 on the micro model -> exit code, and texts of the message.
TRAINING = (
    # Keys and values of the config.
    (("--config.total_stepz=3",), 64, ("total_stepz is not a key", "'total_steps'")),
    (("--config.accumulate=2",), 64, ("config.accumulate is not a key",)),
    (("config.seed=1",), 64, ("unexpected arguments", "--config.KEY=VALUE")),
    (("--config.optimizer.peak_lr=-1",), 64, ("optimizer.peak_lr is -1", "expected")),
    (
        ("--config.optimizer.peak_lr=1e38",),
        64,
        ("optimizer.peak_lr is 1e+38", "to 1000"),
    ),
    (("--config.optimizer.peak_lr=1e-50",), 64, ("optimizer.peak_lr is 1e-50",)),
    (("--config.optimizer.peak_lr=fast",), 64, ("peak_lr",)),
    (("--config.batch_size=100000000000000000000",), 64, ("batch_size is 1000",)),
    (("--config.image_size=1000000",), 64, ("image_size is 1000000; expected 0 to",)),
    (("--config.data.validation_size=100000000000",), 64, ("validation_size is 1000",)),
    (("--config.max_to_keep=100000000000000000000",), 64, ("max_to_keep is 1000",)),
    (("--config.seed=18446744073709551616",), 64, ("config.seed is 1844",)),
    (("--config.model.decoder.vocab_size=100000000000",), 64, ("decoder.vocab_size",)),
    (("--config.data.threads=100000",), 64, ("data.threads is 100000; expected 1 to",)),
    (("--config.data.max_bad_fraction=2.0",), 64, ("max_bad_fraction is 2.0",)),
    (("--config.total_steps=0",), 64, ("total_steps is 0; expected 1 to",)),
    (("--config.model.decoder.width=0",), 64, ("decoder.width is 0; expected 1",)),
    (("--config.model.encoder.num_heads=3",), 64, ("a multiple of", "num_heads = 3")),
    (("--config.gradient_accumulation_steps=3",), 64, ("a multiple of", "steps = 3")),
    (("--config.data.buckets=(16,12)",), 64, ("data.buckets", "increasing")),
    (("--config.dtype=float16",), 64, ("config.dtype is 'float16'", "'bfloat16'")),
    (("--config.model.fusion=hivee",), 64, ("model.fusion is 'hivee'", "'hive'")),
    (("--config.model.connections=((9,1),)",), 64, ("an encoder depth of 1 to 2",)),
    (("--config.mesh.data=3",), 64, ("config.mesh is data=3", "number of devices")),
    (("--config.name=../../x",), 64, ("config.name is '../../x'", "a name of 1 to")),
    (("--config.name=",), 64, ("config.name is ''; expected a name",)),
    # Rules.
    (("--config.rules=()",), 64, ("config.rules is (); expected one rule or more",)),
    (("--config.rules=(('img/(',1.0),)",), 64, ("'img/('", "a regular expression")),
    (("--config.rules=(('fuson/.*',1.0),('.*',None))",), 64, ("'fuson/.*'",)),
    (("--config.rules=(('fusion/.*',1.0),)",), 64, ("no rule",)),
    (("--config.rules=(('.*',None),)",), 64, ("train",)),
    # Weights, tokenizer, data.
    (("--config.init=nowhere",), 66, ("no checkpoint in nowhere",)),
    (("--config.init_encoder=no.npz",), 66, ("no.npz",)),
    (("--config.init_decoder=builtin:tabletop_llm",), 78, ("the weights have 64",)),
    (("--config.data.tokenizer=",), 64, ("no tokenizer came with the weights",)),
    (("--config.data.tokenizer=no.json",), 66, ("no.json",)),
    (("--config.data.source=lava:chat.json",), 64, ("did you mean 'llava'?",)),
    (("--config.data.source=llava:no.json",), 66, ("no.json",)),
    (("--config.data.source=food101:/",), 64, ("a whole disk",)),
    (("--config.data.source=llava:https://host/a.json",), 64, ("https://host/a.json",)),
    (
        ("--config.data.source=llava:{folder}/chat.json,images={folder}",),
        66,
        ("0.jpg", "the nearest: images/0.jpg"),
    ),
    (
        (
            "--config.data.source=llava:{folder}/chat.json,images={folder}/images,form=chat",
            "--config.data.num_tokens=2",
        ),
        65,
        ("no supervised token", "num_tokens = 2"),
    ),
    # Folders and jobs.
    (("--workdir=",), 64, ("workdir is ''; expected the path of a folder",)),
    (("--workdir=https://host/run",), 64, ("workdir is 'https://host/run'",)),
    (
        ("--workdir={folder}/" + "x" * 300,),
        73,
        ("cannot write", "Choose another folder"),
    ),
    (("--workdir={folder}/file/run",), 73, ("cannot write", "file/run")),
    (("--coordinator_address=x",), 64, ("coordinator_address", "together")),
    (("--num_processes=2",), 64, ("num_processes and process_id go together",)),
    (
        ("--coordinator_address=x", "--num_processes=2", "--process_id=0"),
        64,
        ("coordinator_address is 'x'; expected HOST:PORT",),
    ),
    # A run that is there already.
    (
        ("--workdir={run}", "--config.seed=5"),
        78,
        ("seed: 0 -> 5", "allow_config_change"),
    ),
    (
        ("--workdir={run}", "--config.total_steps=1", "--allow_config_change"),
        64,
        ("total_steps is 1", "at step 2 already"),
    ),
)

# Module -> arguments, exit code, and texts of the message.
COMMANDS = (
    ("train", (), 64, ("--config is missing, e.g. --config configs/stage1.py",)),
    ("train", ("--config=no.py",), 66, ("--config no.py: no such file", "stage1")),
    (
        "train",
        ("--config={folder}/syntax.py",),
        64,
        ("syntax.py, line 1: SyntaxError",),
    ),
    ("train", ("--config={folder}/zero.py",), 64, ("zero.py, line 2: ZeroDivision",)),
    ("train", ("--config={folder}/import.py",), 64, ("import.py, line 1: Module",)),
    ("train", ("--config={folder}/none.py",), 64, ("returned NoneType; expected",)),
    ("train", ("--config={folder}/empty.py",), 64, ("has no get_config(); expected",)),
    ("train", ("--config=stage1:fusion=hivee",), 64, ("fusion", "'hive'")),
    ("train", ("--config=probe",), 64, ("is a config of probes; expected one of",)),
    ("train", ("--config=stage2", "--workdir={folder}/stage2"), 66, ("stage1",)),
    ("probe", ("--config=stage1", "--run=x"), 64, ("is a config of training",)),
    ("probe", ("--config=probe", "--run={folder}/none"), 66, ("none",)),
    (
        "export_hf",
        ("--run={folder}", "--component=encoder", "--out=x"),
        66,
        ("no checkpoint",),
    ),
    ("export_hf", ("--run={run}", "--component=vlm", "--out=x"), 78, ("as encoder",)),
    (
        "export_hf",
        ("--run={run}", "--component=encoder", "--out={folder}"),
        73,
        ("exists",),
    ),
    ("export_hf", ("verify", "{folder}/none"), 66, ("none",)),
    ("import_weights", ("--encoder=no", "--out=x"), 66, ("no",)),
    ("prepare_data", ("--from=llava:no.json", "--out={folder}/x"), 66, ("no.json",)),
    ("compare", ("{folder}/a", "{folder}/b"), 66, ("a",)),
)

_CONFIGS = {
    "syntax": "def get_config(:",
    "zero": "def get_config():\n    return 1 / 0",
    "import": "import no_such_module",
    "none": "def get_config(): pass",
    "empty": "",
}


def write_files(folder: Path) -> None:
    """Writes the files that the commands name, but for the run.

    Args:
      folder: to write to.
    """
    (folder / "file").write_text("")
    for name, code in _CONFIGS.items():
        (folder / f"{name}.py").write_text(code)
    images, records = folder / "images", []
    images.mkdir()
    for number in range(20):
        (images / f"{number}.jpg").write_bytes(encoded(photograph(number)))
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
        records.append({"id": "0", "image": f"{number}.jpg", "conversations": turns})
    (folder / "chat.json").write_text(json.dumps(records))
