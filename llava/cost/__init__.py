"""What a budget costs and what a machine gives: FLOPs of a step, peaks of devices, fair timing."""
