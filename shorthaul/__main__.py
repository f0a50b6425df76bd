"""`python -m shorthaul` is the command `shorthaul`."""

from shorthaul.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
