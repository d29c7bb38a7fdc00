"""`python -m overpaint`: the command line, where the script `overpaint` is not on the path."""

from overpaint.cli.main import main

if __name__ == "__main__":
    main()
