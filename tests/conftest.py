"""The fixtures of every test are in the modules named here, which pytest finds by its setting ``pythonpath``."""

pytest_plugins = ["fix_servers"]
