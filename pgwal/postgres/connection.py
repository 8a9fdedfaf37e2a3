"""How connections are made: parameters as psql takes them, SQL and replication connections, libpq's errors.

Knows nothing of what the connections are used for.  Values that are not given come from where libpq looks for
them: PG* variables, services, .pgpass.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import capabilities, pq, waiting
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgwal.budget import CANCEL_TIMEOUT_S, PROBE_S, SQL_LOOK_S
from pgwal.errors import ConnectionFailed, PasswordRequired, PrivilegeMissing, ServerError, SettingRequired
from pgwal.postgres.identifier import quoted_identifier
from pgwal.postgres.silence import require_living, watched

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION_NAME = "pgwal"

# Used where neither the parameters nor the environment say otherwise.  libpq's own connect_timeout is endless.
# The session that holds a backup open is idle for hours; firewalls and NAT forget it unless TCP keeps it alive.
# A machine that is gone shows within two minutes, whether an answer is waited for or a question is not taken.
_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "60",
    "keepalives_interval": "10",
    "keepalives_count": "6",
    "tcp_user_timeout": "120000",
}


# Set for a role or database, these would end a session that waits for a checkpoint or for files to be copied.
# Not every version has each.
_TIMEOUTS = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
]

# What a role or database may have set otherwise, and answers are read by.
_SETTINGS = """
    SELECT pg_catalog.set_config('search_path', '', false),
           pg_catalog.set_config('DateStyle', 'ISO, YMD', false),
           pg_catalog.set_config('IntervalStyle', 'postgres', false),
           pg_catalog.set_config('bytea_output', 'hex', false)
"""

# What is never printed, and what is in its place.
_SECRETS = {"password", "sslpassword"}
_HIDDEN = "********"


@dataclass(frozen=True, slots=True)
class ConnectionParameters:
    """Where to connect to and as whom: a libpq connection string or URI, empty for libpq's defaults."""

    conninfo: str = ""

    @classmethod
    def from_options(
        cls,
        dbname: str | None = None,
        *,
        host: str | None = None,
        port: str | int | None = None,
        user: str | None = None,
    ) -> ConnectionParameters:
        """Combine -d, -h, -p and -U as psql does: what a connection string in ``dbname`` says wins.

        Raises ConnectionFailed when ``dbname`` looks like a connection string and is not one.
        """
        for value in (dbname, host, str(port or ""), user):
            _require_text(value)
        options = {"host": host, "port": port, "user": user}
        if dbname is not None and _is_connection_string(dbname):
            options.update(_parse_conninfo(dbname))
        else:
            options["dbname"] = dbname
        return cls(make_conninfo("", **{key: value for key, value in options.items() if value is not None}))

    def with_password(self, password: str) -> ConnectionParameters:
        """Return the same parameters with a password that was asked for."""
        return replace(self, conninfo=make_conninfo(self.conninfo, password=password))

    def __str__(self) -> str:
        values = _parse_conninfo(self.conninfo)
        return make_conninfo("", **(values | dict.fromkeys(_SECRETS & values.keys(), _HIDDEN)))

    def __repr__(self) -> str:
        return f"ConnectionParameters({str(self)!r})"


def _require_text(value: str | None) -> None:
    """Raise ConnectionFailed for what libpq cannot be told."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise ConnectionFailed(
            "the names of host, user and database must be text in UTF-8",
            hint="Check the options, and the encoding of the terminal or script.",
        ) from error


def _is_connection_string(dbname: str) -> bool:
    return "=" in dbname or dbname.startswith(("postgresql://", "postgres://"))


def _parse_conninfo(conninfo: str) -> dict[str, str]:
    try:
        return {key: str(value) for key, value in conninfo_to_dict(conninfo).items() if value is not None}
    except psycopg.Error as error:
        raise ConnectionFailed(
            f"the connection string is not valid{_unknown_keyword(conninfo, str(error))}",
            hint='Write "host=... port=... dbname=... user=..." or postgresql://user@host:port/dbname.',
        ) from error


def _unknown_keyword(conninfo: str, message: str) -> str:
    """Name the keyword that libpq does not know.

    Of its messages no more is passed on, for they quote the string; and nothing where that may have a password, of
    which the keyword may be a part.
    """
    found = re.match(r'invalid (?:connection option:?|URI query parameter:) "([a-z_]{1,40})"', message)
    if found is None or "password" in conninfo or "@" in conninfo:
        return ""
    return f": no parameter is called {found[1]!r}"


class Connection(psycopg.Connection[Any]):
    """A connection that an end which somebody wants does not keep waiting, whether or not the server answers."""

    was_cut = False
    """Whether ``cut`` has been called."""
    conninfo = ""
    """What it was made with."""

    def wait(self, gen: Any, interval: float = SQL_LOOK_S, timeout: float | None = None) -> Any:
        """As psycopg's, but after an interruption it does not wait for the answer of a server that may hang.

        Raises ConnectionFailed for one that hangs; where one takes long, says so now and then.
        """
        try:
            options = {} if timeout is None else {"timeout": timeout}
            return waiting.wait(watched(gen, self._note_silence), self.pgconn.socket, interval, **options)
        except ConnectionFailed:
            self.pgconn.finish()
            raise
        except KeyboardInterrupt:
            # What it does, such as a spread checkpoint, might take long to notice that nobody is there.
            self._cancels()
            self.pgconn.finish()
            raise

    def _note_silence(self, silent_s: float) -> None:
        if not self.was_cut:
            info = self.info
            again = make_conninfo(self.conninfo, host=info.host, port=info.port, connect_timeout=PROBE_S)
            require_living(lambda: _open(again), silent_s)

    def give_up(self) -> None:
        """Have the server end the query that is under way; when it does not answer, close the connection."""
        if not self._cancels():
            self.close()

    def _cancels(self) -> bool:
        """Ask the server to cancel what is under way, and tell whether it answers."""
        if not capabilities.has_cancel_safe():
            return False
        try:
            self.cancel_safe(timeout=CANCEL_TIMEOUT_S)
        except psycopg.Error:
            return False
        return True

    def cut(self) -> None:
        """Have whoever waits for the server, in another thread, meet the end of the connection at once."""
        self.was_cut = True
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.pgconn.socket)) as shared:
            shared.shutdown(socket.SHUT_RDWR)


def connect_sql(parameters: ConnectionParameters) -> Connection:
    """Open a connection for SQL: autocommit, without timeouts, with pg_catalog alone in the search path.

    Dates, times and bytes come in one spelling, whatever role and database have set.

    Raises ConnectionFailed (PasswordRequired among them).
    """
    connection = _connect(parameters, {})
    with translated_errors(connection):
        # First, so that no function of another schema takes the place of the server's own.
        connection.execute(_SETTINGS)
        connection.execute("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = ANY (%s)", [_TIMEOUTS])
    return connection


def connect_replication(parameters: ConnectionParameters, *, application_name: str | None = None) -> Connection:
    """Open a connection for physical replication; give it to WalSender, it takes no SQL.

    ``application_name``, which synchronous_standby_names may list, wins over one in the parameters.
    Raises ConnectionFailed (PasswordRequired among them), PrivilegeMissing for a role without REPLICATION, or
    SettingRequired for a server whose settings allow no replication.
    """
    # The name "replication" means nothing to the server here, but it is what .pgpass has for such connections.
    extra = {"replication": "true", "dbname": "replication"}
    if application_name is not None:
        extra["application_name"] = application_name
    return _connect(parameters, extra)


def _connect(parameters: ConnectionParameters, extra: dict[str, str]) -> Connection:
    """Open a connection; psycopg walks over several hosts and addresses, each with the time-out."""
    values = _parse_conninfo(parameters.conninfo)
    # Which kind of connection is made is not for the user to say.
    values.pop("replication", None)
    known = _libpq_defaults() | values
    if "service" not in known:
        values |= {key: value for key, value in _DEFAULTS.items() if key not in known}
    values |= {"fallback_application_name": APPLICATION_NAME, "client_encoding": "UTF8", **extra}
    if any(host.startswith("@") for host in known.get("host", "").split(",")):
        # Where the environment has it, too.
        values["host"] = known["host"]
    try:
        return _open(make_conninfo("", **values))
    except psycopg.Error as error:
        raise _connection_error(error, values.get("user")) from error


def _open(conninfo: str) -> Connection:
    hosts = conninfo_to_dict(conninfo).get("host") or ""
    is_abstract = any(host.startswith("@") for host in str(hosts).split(","))
    connection = _connect_by_libpq(conninfo) if is_abstract else Connection.connect(conninfo, autocommit=True)
    connection.conninfo = conninfo
    return connection


def _connect_by_libpq(conninfo: str) -> Connection:
    """Connect where psycopg would look for a host of the name of an abstract socket."""
    pgconn = pq.PGconn.connect(conninfo.encode())
    if pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError(pgconn.get_error_message())
    pgconn.nonblocking = 1
    connection = Connection(pgconn)
    connection.autocommit = True
    return connection


def _libpq_defaults() -> dict[str, str]:
    """Return what libpq takes from the environment and its own defaults."""
    return {
        option.keyword.decode(): option.val.decode(errors="replace")
        for option in pq.Conninfo.get_defaults()
        if option.val
    }


# ---- errors ----


@contextmanager
def translated_errors(connection: psycopg.Connection) -> Iterator[None]:
    """Turn psycopg's errors on ``connection`` into pgwal's.

    A connection that is lost gives ConnectionFailed, SQLSTATE 42501 PrivilegeMissing, all else ServerError, answers
    among it that are not what was asked for.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise PrivilegeMissing(error_text(error), hint=error.diag.message_hint) from error
    except psycopg.Error as error:
        if connection.broken or connection.closed:
            raise ConnectionFailed(f"the connection was lost: {error_text(error)}") from error
        raise ServerError(error_text(error), hint=error.diag.message_hint) from error
    except (ValueError, TypeError, OverflowError) as error:
        # Of the conversions; a server, or what stands before it, may answer anything.
        raise ServerError(f"the server's answer cannot be read: {one_line(str(error))}") from error


def error_text(error: psycopg.Error) -> str:
    """Return the server's message and detail, or else libpq's text, in one line."""
    if error.diag.message_primary is None:
        return one_line(str(error))
    return one_line(": ".join(filter(None, (error.diag.message_primary, error.diag.message_detail))))


def one_line(text: str) -> str:
    """Join the lines of a message and drop what psycopg puts before libpq's text."""
    text = re.sub(r"^(?:connection failed|connection is bad|consuming input failed): ", "", text.strip())
    return " ".join(text.split())


# libpq hands over no SQLSTATE when a connection fails, so the kinds are told apart by the text, and a server that
# speaks another language is left without hint.  The first pattern that is found counts.
_HINTS = (
    (
        r"password authentication failed",
        "Check the password of {role}: in .pgpass or PGPASSWORD, or asked for with -W.",
    ),
    (
        r"no pg_hba\.conf entry for replication",
        'Add a line for database "replication" and {role} to pg_hba.conf, then reload the server:'
        " database name all does not cover replication connections.",
    ),
    (r"no pg_hba\.conf entry", "Add a line for {role} to the server's pg_hba.conf, then reload the server."),
    (r'database ".*" does not exist', "Name a database that exists with -d, such as -d postgres."),
    (r'role ".*" does not exist', "Name the role with -U, or create it: CREATE ROLE ... LOGIN REPLICATION."),
    (
        r"max_wal_senders",
        "Raise max_wal_senders (this needs a restart), or end a replication connection that is not needed.",
    ),
    (
        r"too many (clients|connections)|connection slots are reserved",
        "Raise max_connections, or end connections that are not needed.",
    ),
    (
        r"the database system is (starting up|shutting down|in recovery mode|not (yet )?accepting connections)",
        "Try again when the server accepts connections; a standby needs hot_standby = on for SQL.",
    ),
    (
        r'service ".*" not found|service file',
        "Check the service name, and PGSERVICEFILE or ~/.pg_service.conf.",
    ),
    (r"SSL|certificate", "Check sslmode, sslrootcert and sslcert against what the server offers."),
    (
        r"Servname not supported|invalid port number|for connection option \"port\"",
        "Check the port given with -p or PGPORT.",
    ),
    (
        r"failed to resolve host|could not translate host name|[Nn]ame or service not known",
        "Check the host name given with -h or PGHOST.",
    ),
    (
        r"timeout expired|[Tt]imed out",
        "Check host and port, and whether a firewall lies between; connect_timeout sets how long to wait.",
    ),
    (
        r"[Cc]onnection refused|[Nn]o such file or directory|No route to host|[Nn]etwork is unreachable",
        "Check that the server runs and that -h and -p (or PGHOST and PGPORT) name it.",
    ),
)

# With wal_level = minimal, max_wal_senders must be 0.
_REPLICATION_OFF = r"max_wal_senders\"? \(currently 0\)"

# In 13 to 15, and since 16.
_NO_REPLICATION = r"must be superuser or replication role to start walsender|permission denied to start WAL sender"


def _connection_error(error: psycopg.Error, user: str | None) -> ServerError:
    """Return the pgwal error for a connection that could not be made."""
    pgconn = error.pgconn
    text = one_line(str(error))
    role = _role_of(pgconn, user)
    if re.search(_NO_REPLICATION, text):
        return PrivilegeMissing(text, hint=f"A superuser can run: ALTER ROLE {role} REPLICATION;", role=role)
    if re.search(_REPLICATION_OFF, text):
        return SettingRequired(
            f"replication is switched off: {text}",
            hint="Set wal_level = replica and max_wal_senders = 10, and restart the server.",
            setting="max_wal_senders",
        )
    if pgconn is not None and pgconn.needs_password:
        return PasswordRequired(text, hint="Give the password with -W, in .pgpass or in PGPASSWORD.")
    for pattern, hint in _HINTS:
        if re.search(pattern, text):
            return ConnectionFailed(text, hint=hint.format(role=role))
    return ConnectionFailed(text)


def _role_of(pgconn: pq.abc.PGconn | None, user: str | None) -> str:
    """Return the role that tried to log in, quoted for SQL where that is needed."""
    name = user or _libpq_defaults().get("user") or "the role"
    if pgconn is not None and pgconn.user:
        name = pgconn.user.decode(errors="replace")
    return quoted_identifier(name)
