"""Whether a file is as it was written, which neither torch nor safetensors looks at.

``torch.load`` compares no checksum, and safetensors files have none: a bit that flipped on a disk
or on the way is loaded as another weight, without a word.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_MAGIC = b"PK\3\4"
_UTF8 = 0x800
_CHUNK = 2**20


class DamagedError(ValueError):
    """The file is not as it was written."""


def check_archive(file: BinaryIO) -> None:
    """Every member of a zip file as ``torch.save`` writes it, against its checksum.

    Members are found through the directory at the end and through the headers in front of them;
    readers differ in which of the two they believe, so both have to say the same. What says nothing
    of the content has to be alike in all members: torch's reader takes one whose attributes say
    "folder" for empty, and gives whatever was in memory. After this, a bit that differs from what
    was written is one that no reader uses (padding, checksums behind the data). The file is read
    once, in pieces.

    Raises:
        DamagedError: and which member.
    """
    try:
        members = zipfile.ZipFile(file).infolist()
    except Exception as error:  # zipfile raises nearly anything on damage
        raise DamagedError(f"its directory cannot be read ({error})") from error
    if len({member.orig_filename for member in members}) < len(members):
        raise DamagedError("its directory names a member twice")
    if len({_attributes(member) for member in members}) > 1:
        raise DamagedError("its directory gives members unlike attributes")
    for member in members:
        if not _is_whole(file, member):
            raise DamagedError(f"{member.orig_filename!r} in it is not as it was written")


def _attributes(member: zipfile.ZipInfo) -> tuple:
    return (
        *(member.create_system, member.date_time, member.volume),
        *(member.internal_attr, member.external_attr, member.comment),
    )


def _is_whole(file: BinaryIO, member: zipfile.ZipInfo) -> bool:
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        return False
    magic, _, flags, method, _, _, crc, packed, size, name, extra = _LOCAL_HEADER.unpack(header)
    encoding = "utf-8" if flags & _UTF8 else "cp437"
    if (
        magic != _MAGIC
        or file.read(name).decode(encoding, "replace") != member.orig_filename
        or (flags, method) != (member.flag_bits, zipfile.ZIP_STORED)
        or member.compress_type != zipfile.ZIP_STORED
        or member.compress_size != member.file_size
        # Zeros, where they are written behind the data; ones, where they stand in the extra field.
        or crc not in (0, member.CRC)
        or not {packed, size} <= {0, member.file_size, 0xFFFFFFFF}
    ):
        return False
    file.seek(extra, 1)
    left, found = member.file_size, 0
    while left and (chunk := file.read(min(_CHUNK, left))):
        found, left = zlib.crc32(chunk, found), left - len(chunk)
    return not left and found == member.CRC


def digest(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of named texts and of named tensors: dtypes, shapes and bytes.

    Neither the order of the names matters nor the device.
    """
    total = hashlib.sha256()
    for name, text in sorted(texts.items()):
        total.update(repr((name, text)).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()
