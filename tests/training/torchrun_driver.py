"""What each of the processes does that torchrun starts for the tests: train a sharded base, then what the command says.

python torchrun_driver.py SHARDED.yaml OUT WORD... trains SPREAD.yaml into OUT, writes to OUT.json how many numbers this
process held of the base before and after it was sharded, and calls em-interp with the words.
"""

import json
import os
import sys
from pathlib import Path

import torch

from em_interp.cli import main
from em_interp.training import distributed as sharding
from em_interp.training.train import train
from em_interp.utils.processes import exit_process

held: list[int] = []
really = sharding.shard


def counted(model, trained) -> None:
    held.append(numbers(model))
    really(model, trained)
    held.append(numbers(model))


def numbers(model) -> int:
    parts = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in model.parameters())
    return sum(part.numel() for part in parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sharding.shard = counted
    config, out, *words = sys.argv[1:]
    train(config, out)
    if os.environ["RANK"] == "1":
        Path(out + ".json").write_text(json.dumps(held))
    exit_process(main(words))
