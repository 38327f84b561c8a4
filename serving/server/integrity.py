"""The check of a version's files against its MANIFEST.json, before TensorFlow reads them.

TensorFlow loads many a saved_model.pb with a flipped bit without an error, so a checksum has to find it.
"""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

from serving.server.errors import Code, RequestError

MANIFEST = "MANIFEST.json"
_SEAL, _SIGNATURE = "manifest_sha256", "manifest_hmac_sha256"  # of all the rest of the manifest


def verify(version: Path, required: bool = False, key: bytes | None = None) -> None:
    """Raises RequestError(DATA_LOSS) naming the first file that is missing or differs.

    Without a manifest there is no check, unless it is `required`; then every file must stand in it, too. With a `key`
    it must be signed with it, so that whoever can write the folder cannot make a version that serves.
    """
    path = version / MANIFEST
    if not path.exists():
        if required:
            raise RequestError(Code.DATA_LOSS, f"{version} has no {MANIFEST}, which --profile=hardened requires")
        return
    try:
        manifest = json.loads(path.read_bytes())
        files = manifest["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RequestError(Code.DATA_LOSS, f"{path} is not a readable manifest ({error})") from None
    if key is not None and not _is_signed(manifest, key):
        raise RequestError(Code.DATA_LOSS, f"{path} is not signed with the key of --manifest_key_file")
    for name, (size, sha256) in expected.items():
        _check(version / name, size, sha256)
    if required:
        for file in sorted(file for file in version.rglob("*") if not file.is_dir() and file != path):
            if str(file.relative_to(version)) not in expected:
                raise RequestError(Code.DATA_LOSS, f"{file} does not stand in {MANIFEST}")


def _is_signed(manifest: dict[str, Any], key: bytes) -> bool:
    signed = {name: value for name, value in manifest.items() if name not in (_SEAL, _SIGNATURE)}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    found = str(manifest.get(_SIGNATURE, "")).encode()
    return hmac.compare_digest(found, hmac.digest(key, text.encode(), "sha256").hex().encode())


def _check(path: Path, size: int, sha256: str) -> None:
    try:
        with open(path, "rb") as file:
            found = path.stat().st_size
            if found != size:
                raise RequestError(Code.DATA_LOSS, f"{path} has {found} bytes instead of {size}")
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise RequestError(Code.DATA_LOSS, f"{path} has changed since it was written (SHA-256 differs)")
    except OSError as error:
        raise RequestError(Code.DATA_LOSS, f"{path}, which stands in {MANIFEST}: {error.strerror}") from None
