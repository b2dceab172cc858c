"""What all tests share: real databases and a real broker."""

pytest_plugins = ["tests.support.postgres", "tests.support.broker"]
