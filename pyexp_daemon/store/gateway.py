"""Logging in to an SSH gateway as `ssh` would: ~/.ssh/config, known hosts, keys, agent. Needs asyncssh."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from pyexp_daemon import exceptions
from pyexp_daemon.config.credentials import Ssh

KEEPALIVE_S = 3.0
"""A gateway that says nothing for three times this is given up: about when a unit of work is, too."""

KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
KNOWN_HOSTS_OF_ALL = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
KEYS = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")


async def log_in(ssh: Ssh) -> asyncssh.SSHClientConnection:
    """A connection to a gateway whose host key is known.

    Raises:
        SshTunnelError: it is not to be had; one line that names the gateway, without any secret.
    """
    hint = None
    try:
        gateway = await Gateway.of(ssh)
        try:
            return await gateway.connect()
        except asyncssh.HostKeyNotVerifiable:
            hint = gateway.hint_at_its_key()
            raise
        except (asyncssh.PermissionDenied, asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
            hint = gateway.hint_at_our_keys()
            raise
    except (asyncssh.Error, OSError, EOFError, ValueError) as error:
        raise exceptions.SshTunnelError(f"no ssh connection to {ssh}: {_reason(error)}", hint=hint) from error


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A gateway, with what OpenSSH's files say about it."""

    ssh: Ssh
    where: dict[str, Any]
    options: asyncssh.SSHClientConnectionOptions
    known_hosts: asyncssh.SSHKnownHosts
    keys: Sequence[asyncssh.SSHKeyPair]
    closed: Sequence[Path]
    """Private keys that could not be opened."""

    @classmethod
    async def of(cls, ssh: Ssh) -> Gateway:
        """
        Raises:
            OSError, ValueError: one of the files cannot be read or understood.
        """
        user, _, host = ssh.address.rpartition("@")
        where = {"host": host, "port": ssh.port or (), "username": user or ()}
        options = await asyncssh.SSHClientConnectionOptions.construct(config=(), client_keys=None, **where)
        told = options.config
        # asyncssh would trust any host after `UserKnownHostsFile none`, and does not look at the files for all users.
        known = [
            *_existing(told.get("UserKnownHostsFile", KNOWN_HOSTS)),
            *_existing(told.get("GlobalKnownHostsFile", KNOWN_HOSTS_OF_ALL)),
        ]
        keys, closed = _open_keys(_existing(told.get("IdentityFile", KEYS)), ssh)
        return cls(
            ssh=ssh,
            where=where,
            options=options,
            known_hosts=asyncssh.read_known_hosts([str(path) for path in known]),
            keys=keys,
            closed=closed,
        )

    async def connect(self) -> asyncssh.SSHClientConnection:
        """Log in; nobody is asked anything."""
        return await asyncssh.connect(
            **self.where,
            known_hosts=self.known_hosts,
            client_keys=self.keys,
            passphrase=_passphrase(self.ssh),  # of keys for hosts on the way
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=2,
        )

    def hint_at_its_key(self) -> str:
        """What to do about a host key that is not known, or is another one than that which is."""
        name, port = self.options.host_key_alias or self.options.host, self.options.port
        if any(self.known_hosts.match(name, "", None if port == asyncssh.DEFAULT_PORT else port)):
            return "it is not the key in known_hosts: either the host was installed anew, or somebody is in between"
        return f"`{self._command}` shows its key and remembers it, once you say yes"

    def hint_at_our_keys(self) -> str:
        """What to do when no key of ours is let in."""
        if self.closed:
            names = ", ".join(map(str, self.closed))
            return f"ssh_private_key_password in the credentials does not open {names}"
        return f"`{self._command}` has to log in without a question"

    @property
    def _command(self) -> str:
        port = f"-p {self.ssh.port} " if self.ssh.port else ""
        return f"ssh {port}{shlex.quote(self.ssh.address)}"


def _existing(files: Iterable[str]) -> list[Path]:
    return [path for path in map(Path.expanduser, map(Path, files)) if path.is_file()]


def _open_keys(files: Sequence[Path], ssh: Ssh) -> tuple[list[asyncssh.SSHKeyPair], list[Path]]:
    """The keys that can be opened, and the files that cannot: asyncssh would stop at the first of those."""
    keys: list[asyncssh.SSHKeyPair] = []
    closed = []
    for path in files:
        try:
            keys += asyncssh.load_keypairs(path, _passphrase(ssh))
        except (OSError, ValueError):
            closed.append(path)
    return keys, closed


def _passphrase(ssh: Ssh) -> str | None:
    return ssh.ssh_private_key_password.get_secret_value() if ssh.ssh_private_key_password else None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and (error.errno or 0) > 0:  # a name that is not found has a negative one
        text = os.strerror(error.errno or 0)
        return f"{error.filename}: {text}" if error.filename else text
    return text
