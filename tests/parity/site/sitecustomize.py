"""On the path of PyExperimenter 1.4.2 alone: its credentials name no port, and the servers of tests have one each."""

import functools
import os

if port := os.environ.get("PYEXPERIMENTER_PORT"):
    import pymysql

    pymysql.connect = functools.partial(pymysql.connect, port=int(port))  # type: ignore[assignment]
