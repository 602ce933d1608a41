"""Entry point of `python -m mqtool` and of the console script."""

from mqtool.cli.app import run as main

if __name__ == "__main__":
    main()
