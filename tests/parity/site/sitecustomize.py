"""On the path of PyExperimenter 1.4.2 alone: its credentials name no port, and the servers of tests have one each.

PYEXPERIMENTER_TLS=off also spares it what PyMySQL 1.2 does for TLS at every connect.
"""

import functools
import os
from typing import Any

options: dict[str, Any] = {}
if port := os.environ.get("PYEXPERIMENTER_PORT"):
    options["port"] = int(port)
if os.environ.get("PYEXPERIMENTER_TLS") == "off":
    options["ssl_disabled"] = True
if options:
    import pymysql

    pymysql.connect = functools.partial(pymysql.connect, **options)  # type: ignore[assignment]
