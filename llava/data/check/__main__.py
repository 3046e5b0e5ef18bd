"""`python -m llava.data.check`: check training data before a run starts."""

if __name__ == "__main__":
    # Only here: every spawned worker imports this file, and the command line's imports would cost each seconds.
    import sys

    from llava.common.program import as_program

    def main() -> int:
        """Import and run the command line; the import takes seconds, and Ctrl-C is handled meanwhile, too."""
        from llava.data.check import command

        return command.main()

    sys.exit(as_program(main))
