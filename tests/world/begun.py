"""A process group that somebody else began, as Ray does, of which rank 1 stands still: what the others say."""

from __future__ import annotations

import os
import sys
import time

import torch.distributed as dist

from rlalign.errors import RankLost
from rlalign.world.joining import taking_part


def main(port: str) -> None:
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # torchrun's store is not asked
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    try:
        with taking_part() as world:
            if world.own == 1:
                time.sleep(30)
                os._exit(0)
            world.gather(lambda: None, "a word")
    except RankLost as error:
        print(f"{rank} says: {error}", flush=True)
        time.sleep(5)  # the other may still ask rank 0's store
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
