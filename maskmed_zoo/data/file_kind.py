"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "gzip-compressed once more"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"BZh", "compressed with bzip2"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (0, b"\xfd7zXZ\x00", "compressed with xz"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
    (128, b"DICM", "DICOM"),
    (0, b"NRRD", "NRRD"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5 or MINC 2"),
    (0, b"CDF\x01", "netCDF or MINC 1"),
    (0, b"CDF\x02", "netCDF or MINC 1"),
    (0, b"ObjectType", "MetaImage"),
    (0, b"NDims", "MetaImage"),
    (0, b"\x00\x00\x00\x01\x00\x00", "MGH"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"\x89PNG", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"%PDF", "PDF"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"version https://git-lfs", "a pointer of Git LFS in place of the file: fetch it with 'git lfs pull'"),
    (0, b"/annex/objects", "a pointer of git-annex in place of the file: fetch it with 'git annex get'"),
)
_TEXTS = ((b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"<?xml", "XML"), (b"{", "JSON"))


def kind_of(head: bytes) -> str | None:
    """The kind of a file that begins with `head`, 300 bytes or more of it, in words; None for one that is not known."""
    if not head:
        return "empty"
    for offset, magic, kind in _STARTS:
        if head[offset : offset + len(magic)] == magic:
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((kind for start, kind in _TEXTS if text.startswith(start)), None)
