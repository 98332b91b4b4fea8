"""`python -m maskmed_zoo` is the command `maskmed-zoo`."""

import sys

from maskmed_zoo.cli.main import main

sys.exit(main())
