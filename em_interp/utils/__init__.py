"""What every part stands on: checks of arguments, files, locks, processes, progress bars, stages that resume."""
