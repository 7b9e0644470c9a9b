"""The command ``ratchet``, or ``python -m flows``: signals are seen to before anything that takes time is imported."""

from typing import NoReturn

from flows import environment


def main() -> NoReturn:
    environment.leave_at_once()
    from flows import cli

    cli.main()


if __name__ == "__main__":
    main()
