"""The embedded Postgres: one server for each data directory, shared by the processes of a host.

Guaranteed, whoever is killed whenever: at most one server and one initdb touch a database; a server
that open_embedded_postgres returns has answered; what Postgres acknowledged is kept (fsync and
synchronous_commit are on); a killed server comes back, while its keeper or a user that watches it
lives; a server without users ends.

Kernel locks (flock) say who may do what. They end with their holders, so that nothing has to be
believed of a dead process, as pid files would have it:

    door.lock    held while somebody comes or goes: openers and leavers pass one at a time
    users.lock   shared by every user; who gets it exclusively stops the server, and comers wait
    server.lock  inherited by initdb, the keeper, the postmaster and all its children: if it is
                 free, nothing of them is left, and if not, none other is started

The last user stops the server and waits for its end, so that the directory may be removed after
close(). A user that is killed cannot. For that there is the keeper, a process of 5 MB: parent of
the server, it tries the users lock twice a second. PR_SET_PDEATHSIG, the other way, would tie the
server to the life of its first user. If the keeper itself is killed, the server and its users
notice nothing, and the last of them stops the server; only if that one is killed as well does a
server stay without users, until the next one joins it and leaves. If the server is killed after
its keeper, a user that watches sees once a second that server.lock is free, and starts both.

A data directory holds pgdata (the database), socket, the locks and postgres.log. Sessions come in
by the unix socket only, without a password: its directory is 0700, so they are the server's account
or root. Run as root, the server is another account's, see account.py. A child made by fork shares
its parent's open files, locks included, and is no user of its own; a spawned one opens for itself.

Must not know: tables, other servers, the environment (default_data_dir is handed it).
"""

from smithers.store.embedded.account import EmbeddedPostgresError
from smithers.store.embedded.postgres import EmbeddedPostgres, open_embedded_postgres
from smithers.store.embedded.site import default_data_dir, has_database, state_dir
from smithers.store.embedded.temporary import TemporaryPostgres, open_temporary_postgres

__all__ = [
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "TemporaryPostgres",
    "default_data_dir",
    "has_database",
    "open_embedded_postgres",
    "open_temporary_postgres",
    "state_dir",
]
