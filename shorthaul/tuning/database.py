"""What was measured, kept for later runs and other networks: a SQLite file in the cache directory.

A row says what choices made of a region on a machine: the ratio of its time to that of the region as the defaults have it. The region is a
structural fingerprint (of a program of operators, or of one kernel), so that equal blocks share what was found, in one network and
between networks. The versions cover this package, PyTorch and the compiler: a change of any makes old rows unseen.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1
TABLE = f"""create table if not exists measured_{FORMAT} (
    region text not null, machine text not null, versions text not null, choice text not null,
    ratio real, seconds real, status text not null, at real not null,
    primary key (region, machine, versions, choice))"""


class DatabaseWarning(UserWarning):
    """The tuning database could not be used as intended; tuning goes on, but measures again."""


@dataclass(frozen=True)
class Known:
    """ratio: to the defaults' time, below 1 is faster; None where it could not be measured (`status` says why). seconds: a call."""

    choice: str
    ratio: float | None
    seconds: float | None
    status: str


class Database:
    """The rows of one machine and one set of versions. path: of the file; None keeps them in memory."""

    def __init__(self, path: Path | None, machine: str, versions: str) -> None:
        self.machine, self.versions, self.path = machine, versions, path
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            return self._prepared(sqlite3.connect(":memory:"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._prepared(sqlite3.connect(self.path, timeout=10))
        except sqlite3.OperationalError as e:  # cannot be opened or written
            return self._in_memory(str(e))
        except OSError as e:
            return self._in_memory(str(e))
        except sqlite3.DatabaseError as e:  # not a database
            aside = self.path.with_suffix(f".damaged-{int(time.time())}")
            self.path.rename(aside)
            text = f"the tuning database {self.path} is damaged ({e}); it is now {aside.name}, and a new one begins"
            warnings.warn(text, DatabaseWarning, stacklevel=4)
            return self._prepared(sqlite3.connect(self.path, timeout=10))

    def _in_memory(self, why: str) -> sqlite3.Connection:
        text = (f"the tuning database {self.path} cannot be used ({why}): what is found is lost at the end of the process; name another "
                "directory in SHORTHAUL_CACHE_DIR")  # fmt: skip
        warnings.warn(text, DatabaseWarning, stacklevel=4)
        return self._prepared(sqlite3.connect(":memory:"))

    def _prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        connection.execute(TABLE)
        connection.commit()
        return connection

    def put(self, region: str, known: Known) -> None:
        """Keep a row, at once: an interrupt loses nothing."""
        row = (region, self.machine, self.versions, known.choice, known.ratio, known.seconds, known.status, time.time())
        with self._connection:
            self._connection.execute(f"insert or replace into measured_{FORMAT} values (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def get(self, region: str, choice: str) -> Known | None:
        """The row of one choice for a region."""
        return next((k for k in self.of(region) if k.choice == choice), None)

    def of(self, region: str) -> Iterator[Known]:
        """All rows of a region, the fastest first."""
        query = f"select choice, ratio, seconds, status from measured_{FORMAT} where region = ? and machine = ? and versions = ?"
        rows = self._connection.execute(query + " order by ratio is null, ratio", (region, self.machine, self.versions))
        yield from [Known(*row) for row in rows]

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
