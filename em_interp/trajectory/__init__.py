"""The adapter's path through training: read it, measure it. numpy and safetensors only."""
