"""One of several processes that train together: MODEL FOLDER BATCH_TOKENS RANK SIZE PORT."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tuning.training.run_training import SETTINGS, run

from engine.tuning.training.workers import Workers

if __name__ == "__main__":
    model, folder, batch_tokens, rank, size, port = sys.argv[1:]
    settings = replace(SETTINGS, batch_tokens=int(batch_tokens), epochs=1)
    torch.set_num_threads(1)
    torch.manual_seed(5)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=int(size))
    result = run(Path(model), Path(folder), settings=settings, workers=Workers(int(rank), int(size)))
    sys.stdout.write(result.adapter_digest + "\n" + "\n".join(str(point.valid_loss) for point in result.run.history))
    dist.destroy_process_group()
