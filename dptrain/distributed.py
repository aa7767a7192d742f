"""Which of the processes of a job this one is, read from the variables that torchrun sets."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """This process's place in the job. One process: rank 0 of 1."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process logs, saves and adds the noise."""
        return self.rank == 0


def current_rank() -> Rank:
    """The rank from ``RANK`` and ``WORLD_SIZE``; rank 0 of 1 where they are absent."""
    return Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
