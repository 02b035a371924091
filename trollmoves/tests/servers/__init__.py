"""Real servers for tests, each in a separate process on a free loopback port."""

import pytest

pytest.register_assert_rewrite("trollmoves.tests.servers.contract")
