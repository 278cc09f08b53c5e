"""Training: adapters, the trainer, snapshots, the log."""
