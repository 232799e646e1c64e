"""`python -m taurus_gui`."""

import sys

from taurus_gui.app import main

sys.exit(main())
