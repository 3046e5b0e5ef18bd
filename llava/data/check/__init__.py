"""Checks a training data set before a run: records that would stop it, that have no label, or that look wrong.

python -m llava.data.check --data-path data.json --image-folder images --tokenizer model --report report.json
"""
