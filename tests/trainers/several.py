"""Several trainings in each of several processes, started by torchrun: ``several.py JOB …``, each a launch's job."""

import pickle
import sys
from pathlib import Path

import torch.distributed as dist

from pipeline.protocols import silent
from trainers.dpo import train_policy
from trainers.parallel import Share

if __name__ == "__main__":
    dist.init_process_group("gloo")
    for job in sys.argv[1:]:
        train_policy(*pickle.loads(Path(job).read_bytes()), silent, Share(dist.get_rank(), dist.get_world_size()))
    dist.destroy_process_group()
