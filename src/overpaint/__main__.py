"""The entry point: `overpaint`, and `python -m overpaint` where the script is not on the path."""

import sys


def main() -> None:
    """Run the command line; an interrupt while it is imported shows no traceback."""
    try:
        from overpaint.system.unused_packages import hide_unused_packages

        hide_unused_packages()
        from overpaint.cli.main import main as run
    except KeyboardInterrupt:
        print("overpaint: interrupted. No file was written.", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
