"""`python -m maskmed_zoo` is the command `maskmed-zoo`."""

import sys

from maskmed_zoo.cli import main

sys.exit(main())
