"""`python -m rlalign`, and so `torchrun -m rlalign`."""

from rlalign.cli import main

if __name__ == "__main__":
    main()
