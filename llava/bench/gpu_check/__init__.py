"""Everything that wants a GPU, in one command: `bash scripts/gpu_check.sh`."""
