"""vLLM servers as the engine that samples answers and reads likelihoods."""
