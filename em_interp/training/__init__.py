"""How it is trained: adapters, the trainer, snapshots, the log."""
