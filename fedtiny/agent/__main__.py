"""``python -m fedtiny.agent`` is ``fedtiny-agent``."""

from fedtiny.agent.cli import main

raise SystemExit(main())
