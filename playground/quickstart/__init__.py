"""The quickstart's evaluation and report; `bash scripts/quickstart.sh` runs them."""
