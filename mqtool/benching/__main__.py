"""One process of a run: `python -m mqtool.benching`. Reads its job from standard input."""

from mqtool.benching.clients import main

if __name__ == "__main__":
    main()
