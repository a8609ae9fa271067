"""What a kernel is asked for: problems, configs, which of them are feasible, and launches."""
