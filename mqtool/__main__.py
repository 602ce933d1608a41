"""python -m mqtool, and the console script."""

import gc


def main() -> None:
    """Run mqtool on the process's arguments and exit."""
    gc.disable()  # imports make many objects and no garbage: looking for some takes a tenth of the start-up time
    from mqtool.cli.app import run

    run()


if __name__ == "__main__":
    main()
