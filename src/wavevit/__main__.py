"""``python -m wavevit``, the same as the ``wavevit`` command."""

import sys

from wavevit.cli.main import main

sys.exit(main())
