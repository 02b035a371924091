"""Removes each defence of doc/security.md in turn and expects a test to fail.

``python -m trollmoves.tests.helpers.defences [WORD ...]`` runs in the project's root, with words that select
defences by their names. It prints the defences that no test notices, and exits with 1 if there are any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 600  # s for the tests of one defence
PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Defence:
    """A text of a module, the text without the defence, and tests of which one must fail then."""

    name: str
    module: str
    text: str
    without: str
    tests: tuple[str, ...]


def _defence(name: str, module: str, text: str, without: str, *tests: str) -> Defence:
    return Defence(name, module, text, without, tests)


ATTACKS, ROGUE, CURVE = "system/test_attacks.py", "system/test_rogue_server.py", "system/test_curve.py"
MEMORY, LIMITS, UNPACKING, LISTS = (
    "integration/test_connection_memory.py",
    "unit/test_memory_limits.py",
    "unit/test_unpacking.py",
    "unit/test_allowlists.py",
)

DEFENCES = (
    # Which files can be requested
    _defence(
        "only announced files",
        "provider/announcer.py",
        "if announced is None or not _covers(announced, uris):",
        "if announced is None:",
        f"{ATTACKS}::test_number_must_fit",
    ),
    _defence(
        "each file once",
        "provider/announcer.py",
        "return len(uris) <= len(own) and set(uris) <= set(own)",
        "return set(uris) <= set(own)",
        f"{ATTACKS}::test_not_more_than_was_announced",
    ),
    _defence(
        "path of the opened file",
        "server/local_files.py",
        "        self._check_path(announced, uri, real)\n        version",
        "        version",
        f"{ATTACKS}::test_swapped_for_a_link",
    ),
    _defence(
        "path of the removed file",
        "server/local_files.py",
        ", check=partial(self._check_path, announced, uri))",
        ")",
        f"{ATTACKS}::test_removal_in_a_swapped_directory",
    ),
    _defence(
        "removal of one version",
        "utils/file_versions.py",
        "matches = version_of(os.stat(hidden, dir_fd=directory)) == version",
        "matches = True",
        "unit/test_file_versions.py",
    ),
    _defence(
        "sub-path of a request",
        "provider/push_request.py",
        "not isinstance(path, str) or payload.escapes_directory(path)",
        "not isinstance(path, str)",
        f"{ATTACKS}::test_sub_path",
    ),
    _defence(
        "owners of links",
        "server/symlink_policy.py",
        'self._rule == "owned" and not untrusted',
        'self._rule == "owned"',
        f"{ATTACKS}::test_link_of_a_stranger",
    ),
    _defence(
        "external_symlinks = none",
        "server/symlink_policy.py",
        'self._rule == "all" or (',
        "True or (",
        f"{ATTACKS}::test_no_links_out",
    ),
    _defence(
        "retargeted links",
        "server/symlink_policy.py",
        "isinstance(digests, list) and _digest(path, real) in digests",
        "isinstance(digests, list) and digests",
        f"{ATTACKS}::test_retargeted_link",
    ),
    _defence(
        "links before unpacking",
        "server/file_sources.py",
        "            self._symlink_policy.check_opened(path, fd)\n",
        "",
        f"{ATTACKS}::test_packed_file_swapped_for_a_link",
    ),
    # Where files may be sent
    _defence(
        "allowed destinations",
        "net/destination_allowlist.py",
        " or not any(place.matches(url) for place in allowed)",
        "",
        f"{LISTS}::test_refused",
        f"{ATTACKS}::test_allowed_destination",
    ),
    _defence(
        "encoded parent references",
        "net/destination_allowlist.py",
        "any(map(_escapes_when_decoded, (url.path, *below))) or ",
        "",
        LISTS,
    ),
    _defence(
        "wildcard scheme and local paths",
        "net/destination_allowlist.py",
        "return self.scheme == LOCAL and self._matches_path(url.path)",
        'return self.scheme in ("*", LOCAL) and self._matches_path(url.path)',
        LISTS,
    ),
    _defence(
        "user of a destination",
        "net/destination_allowlist.py",
        "self._matches_user(url) and self",
        "self",
        LISTS,
    ),
    _defence(
        "addresses and names",
        "net/destination_allowlist.py",
        "elif _ADDRESSES_ONLY.fullmatch(self.host) and not hosts.is_address(host):",
        "elif False:",
        LISTS,
    ),
    _defence(
        "backup targets",
        "provider/push_request.py",
        "            check_allowed(allowed, urls.with_host(resolved.directory, host), subpaths)\n",
        "            pass\n",
        f"{ATTACKS}::test_backup_targets",
    ),
    _defence(
        "pushes from before a restart",
        "provider/pushes.py",
        "            destination = push.resolve_destination(self._allowed)\n            targets",
        "            destination = push.resolve_destination(())\n            targets",
        ATTACKS,
    ),
    # Access to ports
    _defence(
        "allowed clients of a request port",
        "messaging/replier.py",
        "if self._access and not self._access.allows(last):",
        "if False:",
        f"{ATTACKS}::test_client_that_is_not_allowed",
    ),
    _defence(
        "allowed subscribers",
        "messaging/sockets.py",
        "        for one in filters:\n            socket.setsockopt(zmq.TCP_ACCEPT_FILTER, one)\n",
        "",
        f"{ATTACKS}::test_allowed_subscribers",
    ),
    _defence(
        "allowed keys",
        "messaging/security/access.py",
        'if self._allowed_keys and _frame_property(frame, "User-Id") not in self._allowed_keys:',
        "if False:",
        f"{ATTACKS}::test_keys",
    ),
    # CURVE
    _defence(
        "keys of clients",
        "messaging/security/authenticator.py",
        "if self.directory == curve_keys.ANYONE or key in self._keys():",
        "if self._keys() is not None:",
        f"{CURVE}::test_unknown_client_is_logged_and_can_be_added",
    ),
    _defence(
        "unreadable directory of keys",
        "messaging/security/authenticator.py",
        "                self.keys = frozenset()\n",
        "",
        f"{CURVE}::test_no_key_is_accepted_while_the_directory_of_keys_cannot_be_read",
    ),
    _defence(
        "rejection without an authenticator's reply",
        "messaging/security/authenticator.py",
        'code, request_id, user_id = b"500", b"", b""',
        'code, request_id, user_id = b"200", b"", b""',
        f"{CURVE}::test_messages_to_the_authenticator_do_not_stop_it",
    ),
    _defence(
        "authorized addresses",
        "messaging/security/authenticator.py",
        "if self.addresses and address not in self.addresses:",
        "if False:",
        f"{CURVE}::test_only_authorized_addresses_connect",
    ),
    # Data from servers
    _defence(
        "announced file names",
        "messaging/payload.py",
        'if not isinstance(uri, str) or os.path.basename(uri) in ("", ".", "..") or "\\0" in uri:',
        "if not isinstance(uri, str):",
        f"{ROGUE}::test_announced_names",
    ),
    _defence(
        "metadata in the destination",
        "receiver/destinations.py",
        "if has_parent_reference or (fixed and (url.scheme, url.netloc) != (fixed.scheme, fixed.netloc)):",
        "if False:",
        f"{ROGUE}::test_metadata_in_the_destination",
    ),
    _defence(
        "control characters in the log",
        "utils/log_format.py",
        'map(printable, text.split("\\n"))',
        'text.split("\\n")',
        f"{ROGUE}::test_control_characters_in_the_log",
        "integration/test_logs.py",
    ),
    _defence(
        "copies of a mirror",
        "mirror/cache.py",
        "if not symlinks.is_below(real, os.path.realpath(directory)):",
        "if False:",
        f"{ROGUE}::test_mirror",
        "system/test_mirror.py",
    ),
    _defence(
        "absolute names in archives",
        "unpacking/archive.py",
        'if member.name.startswith("/"):',
        "if False:",
        f"{UNPACKING}::test_unsafe_members",
    ),
    _defence(
        "parent references in archives",
        "unpacking/archive.py",
        'if ".." in parts or _leads_out(member):',
        "if False:",
        f"{UNPACKING}::test_unsafe_members",
        f"{UNPACKING}::test_unsafe_zip",
    ),
    _defence(
        "devices in archives",
        "unpacking/archive.py",
        "if member.kind is MemberKind.OTHER:",
        "if False:",
        f"{UNPACKING}::test_unsafe_members",
    ),
    _defence(
        "set-user-id members",
        "unpacking/archive.py",
        "member.kind is MemberKind.FILE and member.mode & _BECOMES_ANOTHER_USER",
        "False",
        UNPACKING,
    ),
    _defence(
        "links in the target directory",
        "unpacking/staging.py",
        'if not os.path.join(os.path.realpath(parent), "").startswith(root):',
        "if False:",
        f"{UNPACKING}::test_link_in_the_directory",
    ),
    _defence(
        "environment of the program",
        "unpacking/xrit.py",
        "env={name: value for name, value in os.environ.items() if name in ENVIRONMENT}",
        "env=dict(os.environ)",
        f"{UNPACKING}::test_program_gets_no_secrets",
    ),
    _defence(
        "logs of other providers",
        "receiver/replay.py",
        'min(data["through"], max([source.highest_seen, source.received_through or 0, *numbers]))',
        'data["through"]',
        "unit/test_replay.py::test_a_reply_cannot_skip_numbers_that_were_not_announced",
    ),
    _defence(
        "number of logs",
        "receiver/replay.py",
        "if sum(known.provider == provider for known in self._logs.values()) >= MAX_LOGS:",
        "if False:",
        "unit/test_replay.py::test_the_logs_of_a_provider_are_limited",
    ),
    _defence(
        "addresses are host and port",
        "messaging/sockets.py",
        'if not address.startswith("tcp://") or not hosts.is_host_and_port(address.removeprefix("tcp://")):',
        "if False:",
        "integration/test_messaging.py::test_other_addresses",
    ),
    _defence(
        "retry_after",
        "receiver/fetcher.py",
        "min(float(retry_after), BACKOFF_MAX)",
        "float(retry_after)",
        f"{ROGUE}::test_time_of_the_next_attempt",
    ),
    # Other hosts
    _defence(
        "host keys",
        "movers/ssh/host_keys.py",
        "if fingerprint in self.accepted:",
        "if True:",
        "integration/test_ssh_security.py::test_rejected_by_known_hosts",
    ),
    _defence(
        "revoked host keys",
        "movers/ssh/host_keys.py",
        "set(accepted) - self._revoked.keys()",
        "set(accepted)",
        "integration/test_ssh_security.py::test_revoked_key_with_pin",
    ),
    _defence(
        "pinned host keys",
        "movers/ssh/host_keys.py",
        'raise UnknownHostKey(f"{hostname} presents {described} that is not in ssh_host_key")',
        "return",
        "integration/test_ssh_security.py::test_host_key_differs_from_pin",
    ),
    _defence(
        "host keys of OpenSSH",
        "movers/ssh/openssh.py",
        '"StrictHostKeyChecking": "yes"',
        '"StrictHostKeyChecking": "no"',
        "integration/test_ssh_security.py::test_rejected_by_known_hosts",
    ),
    _defence(
        "FTPS host name",
        "movers/ftp.py",
        '        if not self.option("ftp_tls_verify"):\n            context.check_hostname = False\n',
        '        context.check_hostname = False\n        if not self.option("ftp_tls_verify"):\n',
        "integration/test_ftp_hosts.py::test_certificate_for_another_host",
    ),
    _defence(
        "FTPS certificate",
        "movers/ftp.py",
        '        if not self.option("ftp_tls_verify"):\n            context.check_hostname = False\n',
        "        if True:\n            context.check_hostname = False\n",
        "integration/test_mover_ftp.py::TestFtpsOnPyFtpd::test_unknown_certificate",
    ),
    # Files and directories
    _defence(
        "modes of files",
        "movers/source_file.py",
        "return self.status.st_mode & 0o775",
        "return self.status.st_mode & 0o777",
        "system/test_modes.py",
        "integration/test_mover_file.py",
    ),
    _defence(
        "modes of an existing journal",
        "journal/sqlite/files.py",
        '            os.chmod(f"/proc/self/fd/{descriptor}", 0o600)\n',
        "            pass\n",
        "integration/test_journal.py::test_permissions_of_existing_files_are_corrected",
    ),
    _defence(
        "modes of a new journal",
        "journal/sqlite/files.py",
        "os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)",
        "os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)",
        "integration/test_journal.py::test_only_the_owner_may_read",
        "system/test_modes.py",
    ),
    # Floods
    _defence(
        "time of a handshake",
        "messaging/sockets.py",
        "zmq.HANDSHAKE_IVL: HANDSHAKE,",
        "zmq.HANDSHAKE_IVL: 0,",
        f"{MEMORY}::test_silent_connections_are_closed",
    ),
    _defence(
        "size of a message",
        "messaging/replier.py",
        "zmq.MAXMSGSIZE: MAX_REQUEST_BYTES",
        "zmq.MAXMSGSIZE: 1 << 30",
        f"{MEMORY}::test_long_request",
    ),
    _defence(
        "requests of one sender",
        "messaging/fair_queue.py",
        "len(queue.queued) < MAX_QUEUED and queue.n_bytes",
        "queue.n_bytes",
        "unit/test_client_quotas.py",
    ),
    _defence(
        "bytes of one sender",
        "messaging/fair_queue.py",
        " and queue.n_bytes <= MAX_QUEUED_BYTES",
        "",
        "unit/test_client_quotas.py",
    ),
    _defence(
        "time of a throttled sender",
        "messaging/fair_queue.py",
        "pause = time.monotonic() + THROTTLED_PAUSE * seconds",
        "pause = 0.0",
        "unit/test_client_quotas.py::test_slow_requests_of_a_throttled_sender",
    ),
    _defence(
        "pending pushes of one sender",
        "provider/client_quotas.py",
        "return self._counts[client] >= MAX_PENDING",
        "return False",
        "unit/test_client_quotas.py",
    ),
    _defence(
        "connections of one address",
        "messaging/security/connection_monitor.py",
        "if self._per_address[address] > MAX_PER_ADDRESS or len(self._connections) > self._max_connections:",
        "if len(self._connections) > self._max_connections:",
        "unit/test_client_quotas.py",
    ),
    _defence(
        "connections to one port",
        "messaging/security/connection_monitor.py",
        "if self._per_address[address] > MAX_PER_ADDRESS or len(self._connections) > self._max_connections:",
        "if self._per_address[address] > MAX_PER_ADDRESS:",
        "unit/test_client_quotas.py",
    ),
    _defence(
        "received bytes in memory",
        "messaging/security/connection_memory.py",
        "return self.unread > most or self.unsent > limits.unsent.connection",
        "return self.unsent > limits.unsent.connection",
        LIMITS,
    ),
    _defence(
        "sent bytes in memory",
        "messaging/security/connection_memory.py",
        "return self.unread > most or self.unsent > limits.unsent.connection",
        "return self.unread > most",
        LIMITS,
    ),
    _defence(
        "bytes before a key is accepted",
        "messaging/security/connection_memory.py",
        "most = limits.unread.connection if self.authenticated else min(HANDSHAKE_BYTES, limits.unread.connection)",
        "most = limits.unread.connection",
        LIMITS,
    ),
    _defence(
        "bytes of one address",
        "messaging/security/connection_memory.py",
        "if per_address[one.address] + size > most:",
        "if False:",
        LIMITS,
    ),
    _defence(
        "bytes of all connections",
        "messaging/security/connection_memory.py",
        "if total + size > kind.total:",
        "if False:",
        LIMITS,
    ),
    _defence(
        "received segments",
        "messaging/security/connection_memory.py",
        "        self.unread += SEGMENT_BYTES * max(0, segments - self.segments_base)\n",
        "",
        f"{LIMITS}::test_segments",
    ),
    _defence(
        "frames of a message",
        "messaging/replier.py",
        "        if len(frames) > MAX_FRAMES:\n",
        "        if False:\n",
        f"{MEMORY}::test_message_of_many_frames",
    ),
    _defence(
        "unread bytes of closed connections",
        "messaging/security/connection_monitor.py",
        "if self._is_too_much_left(address):",
        "if False:",
        f"{MEMORY}::test_closed_connections",
    ),
    _defence(
        "messages of connections that are not registered",
        "messaging/security/authenticator.py",
        "        created.zap_domain = domain\n        created.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)\n",
        "",
        f"{MEMORY}::test_messages_before_a_check",
    ),
    _defence(
        "new connections of an address that exceeded a limit",
        "messaging/security/connection_monitor.py",
        "if time.monotonic() < self._penalties.get(address, 0.0):",
        "if False:",
        f"{MEMORY}::test_refused_without_a_filter",
    ),
    _defence(
        "connection requests of refused addresses",
        "messaging/security/connection_monitor.py",
        "drop_connections(self._listener, self.port, refused)",
        "pass",
        f"{MEMORY}::test_address_of_a_closed_connection",
    ),
    _defence(
        "failed handshakes of an address",
        "messaging/security/connection_monitor.py",
        "if self._strikes[address] > MAX_STRIKES:",
        "if False:",
        f"{MEMORY}::test_address_of_failed_handshakes",
    ),
    _defence(
        "growth of the process",
        "messaging/security/authenticator.py",
        "if process_memory.resident_bytes() - self._usual_memory > MAX_GROWTH:",
        "if False:",
        f"{MEMORY}::test_bytes_that_take_much_more_memory",
    ),
    _defence(
        "values of a request",
        "messaging/replier.py",
        'if len(body[0]) > MAX_VALUES and sum(map(body[0].count, b"[{,")) > MAX_VALUES:',
        "if False:",
        f"{MEMORY}::test_request_of_many_values",
    ),
    _defence(
        "size of a subscription",
        "messaging/publisher.py",
        "zmq.MAXMSGSIZE: MAX_SUBSCRIPTION_BYTES",
        "zmq.MAXMSGSIZE: 1 << 30",
        f"{MEMORY}::test_one_subscription",
    ),
    _defence(
        "workers of one sender",
        "scheduler/worker_limits.py",
        "if owners and not any(self._may_have(owner, lane) for owner in owners):",
        "if False:",
        "unit/test_scheduler.py::test_one_owner_leaves_workers",
    ),
    _defence(
        "time of all backup targets",
        "movers/remote.py",
        "if first and time.monotonic() > end:",
        "if False:",
        "integration/test_mover_ftp.py::TestFtpOnPyFtpd::test_silent_backup_targets",
    ),
    # Secrets
    _defence(
        "secrets in errors",
        "net/redaction.py",
        "        if value in text:\n",
        "        if False:\n",
        "integration/test_redaction.py",
    ),
)


def notices(defence: Defence, project: Path) -> str:
    """Remove a defence from a copy of the project; return "" if a test fails, else what happened."""
    module = project / "trollmoves" / defence.module
    original = module.read_text(encoding="utf-8")
    if original.count(defence.text) != 1:
        return f"its text occurs {original.count(defence.text)} times in {defence.module}"
    module.write_text(original.replace(defence.text, defence.without), encoding="utf-8")
    try:
        return {0: "no test fails", 1: ""}.get(status := _run(defence.tests, project), f"pytest exits with {status}")
    finally:
        module.write_text(original, encoding="utf-8")


def _run(tests: tuple[str, ...], project: Path) -> int:
    paths = [f"trollmoves/tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *paths]
    try:
        return subprocess.run(
            command,
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return 1


def main(words: list[str]) -> int:
    """Check the defences that the words select; return the exit status."""
    selected = [one for one in DEFENCES if not words or any(word in one.name for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as directory:
        project = Path(directory) / "project"
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*_cache", ".demo", ".coverage")
        shutil.copytree(PACKAGE.parent, project, ignore=ignored)
        for defence in selected:
            begun = time.monotonic()
            failure = notices(defence, project)
            survivors += bool(failure)
            print(f"{defence.name}: {failure or 'noticed'} ({time.monotonic() - begun:.0f} s)", flush=True)  # noqa: T201
    print(f"{len(selected)} defences, {survivors} not noticed")  # noqa: T201
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
