"""`python -m rebus` is `rebus`."""

from rebus.cli import main

if __name__ == "__main__":
    main()
