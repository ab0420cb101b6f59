"""``python -m paperhooks_testbed.training``: trains the tiny vision-language model, or exports it."""

from paperhooks_testbed.training.train import main

if __name__ == "__main__":
    raise SystemExit(main())
