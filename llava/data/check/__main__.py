"""`python -m llava.data.check`: see what a training run would stumble over, before it starts."""

if __name__ == "__main__":
    # Only here: every spawned worker imports this file, and the command line's imports would cost each seconds.
    import sys

    from llava.common.program import as_program

    def main() -> int:
        """Import the command line, which takes seconds, where Ctrl-C is minded already."""
        from llava.data.check import command

        return command.main()

    sys.exit(as_program(main))
