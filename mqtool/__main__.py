"""python -m mqtool, and the console script."""


def main() -> None:
    """Run mqtool on the process's arguments and exit."""
    from mqtool.cli.app import run

    run()


if __name__ == "__main__":
    main()
