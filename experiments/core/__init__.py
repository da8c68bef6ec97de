"""What every run shares: settings, command line, stages, members, checkpoints, results."""
