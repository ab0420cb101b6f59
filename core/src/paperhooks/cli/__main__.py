"""``python -m paperhooks.cli``."""

from paperhooks.cli.entry import main

if __name__ == "__main__":
    main()
