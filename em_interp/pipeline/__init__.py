"""The stages of a run, from sampling answers to the analyses of the model's internals.

Each stage writes to the run. It is refused, before it computes anything, where its results exist already, unless
`resume` (continue with them) or `overwrite` (replace them) is given. A run is given as a Run or as its folder.
"""
