"""What is trained: base models, datasets, and the built-in tiny organism."""
