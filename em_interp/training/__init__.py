"""Training: adapters, the trainer, callbacks, the log."""
