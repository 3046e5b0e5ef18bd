"""Pre-flight of a training data set: what would stop a run, teach nothing or surprise, found before it starts.

python -m llava.data.check --data-path data.json --image-folder images --tokenizer model --report report.json
"""
