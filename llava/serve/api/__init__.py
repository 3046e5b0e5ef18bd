"""OpenAI's chat completions and models over HTTP: `python -m llava.serve.api`; see docs/serving.md."""
