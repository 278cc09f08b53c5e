"""Where a path or a curve changes: locate it, test it, align it. numpy and scipy only."""
