"""Answers from the checkpoints of a run: chats as tokens, batches, generation, log-likelihoods."""
