"""Members of a zip that are stored without compression, as views of the mapped file.

PyTorch and `numpy.savez` write such zips. Nothing is extracted and nothing is read before it is
used, so a single row of a member of many gigabytes costs one row.
"""

import os
import pathlib
import zipfile
import zlib

import numpy as np
from jaxtyping import UInt8


class MappedZip:
    """The members of one zip.

    Args:
        path: the file. It must stay as it is while a view of it is in use.

    Attributes:
        names: of the members, in the order of the file.

    Raises:
        ValueError: it is no zip, is truncated, or a name leads out of the archive.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                self._members = {member.filename: member for member in archive.infolist()}
                count = len(archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path}: truncated or damaged zip ({error})") from error
        self.names = tuple(self._members)
        if len(self.names) < count:
            raise ValueError(f"{self.path}: two members of the zip share a name")
        for name in self.names:
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or ":" in parts[0]:
                raise ValueError(f"{self.path}: refused: member {name!r} leads out of the archive")
        self._file = map_file(self.path)

    def is_stored(self, name: str) -> bool:
        """Whether a member can be mapped: neither compressed nor encrypted."""
        member = self._members[name]
        return member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1

    def size(self, name: str) -> int:
        """Bytes of a member once it is unpacked."""
        return self._members[name].file_size

    def bytes(self, name: str, *, verify: bool = True) -> UInt8[np.ndarray, " n"]:
        """The content of a member, read-only, without a copy.

        Args:
            verify: compare the checksum, which reads the whole member.

        Raises:
            ValueError: the member is absent, compressed or encrypted, is cut off, or has another
                checksum than the zip says.
        """
        if name not in self._members:
            raise ValueError(f"{self.path}: member {name} is missing")
        member = self._members[name]
        if not self.is_stored(name):
            raise ValueError(
                f"{self.path}: member {name} is compressed or encrypted, expected stored bytes; "
                "write the file again without compression"
            )
        # The length of the extra field differs between this header and the central directory.
        header = self._file[member.header_offset : member.header_offset + _HEADER]
        if len(header) < _HEADER or header[:4].tobytes() != b"PK\x03\x04":
            raise ValueError(f"{self.path}: damaged: no header before member {name}")
        lengths = header[26:30].view("<u2")
        start = member.header_offset + _HEADER + int(lengths.sum())
        content = self._file[start : start + member.file_size]
        if len(content) != member.file_size or member.compress_size != member.file_size:
            raise ValueError(
                f"{self.path}: truncated: member {name} has {len(content)} of "
                f"{member.file_size} bytes"
            )
        # PyTorch can be told to write no checksums; they are 0 then.
        if verify and member.CRC and zlib.crc32(content) != member.CRC:
            raise ValueError(f"{self.path}: damaged: wrong checksum of member {name}")
        return content


def map_file(path: str | os.PathLike) -> UInt8[np.ndarray, " n"]:
    """The bytes of a file as a read-only array that reads what is used of it."""
    if not os.path.getsize(path):
        raise ValueError(f"{path}: the file is empty")
    # A plain array: every view of a `np.memmap` would be one too, at some cost.
    return np.asarray(np.memmap(path, np.uint8, mode="r")).view(np.ndarray)


_HEADER = 30  # bytes before the name
