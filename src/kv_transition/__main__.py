"""`python -m kv_transition`."""

import sys

from kv_transition.cli import main

sys.exit(main())
