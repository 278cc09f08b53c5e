"""Settings of runs: what their YAML files say."""
