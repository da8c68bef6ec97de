"""The parts shared by all experiments: settings, command line, stages, members, results."""
