"""A process that resumes an entry, commits and releases until it is killed: run by the tests of the ledger's faults.

usage: python ledger_writer.py URI RELEASES ENTRY LEASE    (one byte in RELEASES is one step's noise, seen outside)
"""

from __future__ import annotations

import os
import sys

from dptrain.privacy.ledger import open_ledger


def main(uri: str, releases: str, entry: int, lease: int) -> None:
    ledger = open_ledger(uri)
    held = ledger.resume(entry)
    witness = os.open(releases, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for step in range(held.committed_steps, held.planned_steps, lease):
        ledger.commit(held, min(held.planned_steps, step + lease))
        for _ in range(lease):
            os.write(witness, b"x")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
