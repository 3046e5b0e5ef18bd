"""`python -m llava.data.check`: see what a training run would stumble over, before it starts."""

if __name__ == "__main__":
    # Only here: every spawned worker imports this file, and the command line's imports would cost each seconds.
    import sys

    from llava.common.program import as_program
    from llava.data.check.command import main

    sys.exit(as_program(main))
