"""The stages of a run, from asking to the look inside the model.

Each stage writes to the run. It is refused, before it computes anything, where its results are there already, unless
`resume` (continue with them) or `overwrite` (replace them) is given. A run is given as a Run or as its folder.
"""
