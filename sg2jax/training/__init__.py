"""One run: restore, the loop, its snapshots, checkpoints and reports."""
