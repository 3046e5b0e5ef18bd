"""An attack on the programs: kills, damaged files, full disks, second starts, hostile input.

    PYTHONPATH=tests python -m attack kills --count 30 --output kills.json
    PYTHONPATH=tests python -m attack --help

Every attack prints what it tried and what happened, ends with status 1 if anything was lost or ended otherwise than
in a sentence, and writes its figures as JSON. The figures of `docs/reliability.md` come from here.
"""
