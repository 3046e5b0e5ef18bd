"""All checks and measurements that need a GPU, in one command: `bash scripts/gpu_check.sh`."""
