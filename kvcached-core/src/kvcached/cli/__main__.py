"""``python -m kvcached.cli``, where the console script is not on the path."""

import sys

from kvcached.cli import main

sys.exit(main())
