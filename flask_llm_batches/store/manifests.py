"""The ``custom_id``s of each batch."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, literal, select

from flask_llm_batches.store.models import ManifestRow
from flask_llm_batches.store.store import Store, transaction

PART_BYTES = 256 * 1024
"""The bytes of the ids in one row of a manifest, before it is compressed: a statement must fit into a packet
of MariaDB, which may be as small as 1 MiB."""


class Manifests(Store):
    """The manifests of one app."""

    @transaction
    def custom_ids(self, connection: Connection, batch_uid: str, part: int) -> Sequence[str]:
        """Return one part of a batch's ids; an empty sequence if there is no such part."""
        query = select(ManifestRow.custom_ids).where(
            ManifestRow.batch_uid == batch_uid, ManifestRow.part == part
        )
        packed = connection.execute(query).scalar()
        return () if packed is None else msgspec.json.decode(zlib.decompress(packed), type=tuple[str, ...])


def pack(batch_uid: str, custom_ids: Collection[str]) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a manifest."""
    return [
        {"batch_uid": batch_uid, "part": part, "custom_ids": packed}
        for part, packed in enumerate(_packed(custom_ids))
    ]


def insert_manifest(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert the rows of a manifest, one statement each."""
    for row in rows:
        connection.execute(insert(ManifestRow), row)


def copy_manifest(connection: Connection, batch_uid: str, to: str) -> None:
    """Copy the manifest of a batch to another one."""
    rows = select(literal(to), ManifestRow.part, ManifestRow.custom_ids).where(
        ManifestRow.batch_uid == batch_uid
    )
    connection.execute(insert(ManifestRow).from_select(["batch_uid", "part", "custom_ids"], rows))


def delete_manifest(connection: Connection, batch_uid: str) -> None:
    """Delete the manifest of a batch."""
    connection.execute(delete(ManifestRow).where(ManifestRow.batch_uid == batch_uid))


def _packed(custom_ids: Iterable[str]) -> Iterator[bytes]:
    part: list[str] = []
    room = PART_BYTES
    for custom_id in custom_ids:
        part.append(custom_id)
        room -= 4 * len(custom_id) + 3  # the most bytes in UTF-8
        if room < 0:
            yield zlib.compress(msgspec.json.encode(part), level=1)
            part, room = [], PART_BYTES
    if part:
        yield zlib.compress(msgspec.json.encode(part), level=1)
