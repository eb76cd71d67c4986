"""What all tables have in common."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Integer, LargeBinary, MetaData, String, text
from sqlalchemy.dialects.mysql import MEDIUMBLOB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Ids are compared byte by byte in every database. MySQL's and MariaDB's default collations ignore case.
BINARY = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}

# Constraints and indexes are in __table_args__. From the flags of a column, they would have no names, or
# names from the host's metadata, and a later migration could not refer to them.


def partial_index(*columns: str, where: str) -> Index:
    """Return an index of the few rows that meet a condition. In MariaDB, it is an index of all rows."""
    condition = text(where)
    return Index(None, *columns, sqlite_where=condition, postgresql_where=condition)


# In SQLite, only a column of the type INTEGER is autoincremented.
ID = BigInteger().with_variant(Integer(), "sqlite")

# A BLOB of MySQL and MariaDB holds at most 64 KB.
BLOB = LargeBinary().with_variant(MEDIUMBLOB(), "mysql", "mariadb")


class Base(DeclarativeBase):
    """The tables of this package. ``init_app`` copies them to the host's metadata."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Leased:
    """The columns of a row that one process at a time works on; ``store/leases.py`` has the rules.

    Attributes:
        lease_token: The token of the holder, or of the last one.
        lease_until: When the lease ends, unless its holder extends it; null when there is no holder.
    """

    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_until: Mapped[int | None] = mapped_column(BigInteger)
