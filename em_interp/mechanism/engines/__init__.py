"""The engines that run a model with an adapter: plain hooks, TransformerLens, nnsight."""
