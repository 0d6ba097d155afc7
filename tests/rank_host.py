"""A process that is one rank of a tensor-parallel generator after another.

A task a line comes in, how it ended goes out. The first rank says that it leads, and does so until the next line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine.config import GeneratorSettings
from engine.errors import SwitchyardError
from engine.generation.engine import Engine
from engine.generation.parallel.follower import follow
from engine.generation.parallel.group import RankGroup

for line in sys.stdin:
    task = json.loads(line)
    folder, rank, model = Path(task["folder"]), task["rank"], Path(task["model"])
    settings = GeneratorSettings(**task["settings"])
    ended = "stopped"
    try:
        if rank == 0:
            engine = Engine(model, settings, ranks=RankGroup(folder, 0, settings.tensor_parallel))
            ended = "leads"
        else:
            follow(folder, rank, model, settings)
    except SwitchyardError as error:
        ended = f"{type(error).__name__}: {error}"
    print(json.dumps(ended), flush=True)
