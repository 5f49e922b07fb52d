"""`python -m kv_transition.serve` is `kv-transition serve`."""

from __future__ import annotations

import argparse
import sys

from kv_transition.errors import UserError
from kv_transition.serve import command


def main() -> int:
    """Serve, with a mistake told in one line."""
    parser = argparse.ArgumentParser(prog="kv-transition serve", description=command.TEXT, allow_abbrev=False)
    command.add_options(parser)
    try:
        return command.run(parser.parse_args())
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
