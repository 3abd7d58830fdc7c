"""What a run did, as one page: `rlalign report` writes it, `rlalign watch` shows it while the run goes on."""
