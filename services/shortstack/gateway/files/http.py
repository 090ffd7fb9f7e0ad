"""``/v1/files``."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, BinaryIO, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import FormData, UploadFile

from shortstack.core.errors import Transient, did_you_mean
from shortstack.gateway.errors import invalid, unsupported
from shortstack.gateway.files.store import FileStore, StoredFile
from shortstack.gateway.keys.auth import Authenticator
from shortstack.gateway.paging import page, page_limit

__all__ = ["files_router"]

PURPOSES: Final = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
_PIECE: Final = 256 * 1024
_LIMIT: Final = 10_000
_NAME_MAX: Final = 255


class _Files:
    def __init__(self, store: FileStore, auth: Authenticator) -> None:
        self._store = store
        self._auth = auth

    async def create(self, request: Request) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise invalid("Expected a multipart/form-data body with 'file' and 'purpose'.", "file", "invalid_form")
        with _disk_errors():
            form = await request.form(max_files=1, max_fields=8)
        try:
            upload, purpose = _wanted(form)
            stored = await asyncio.to_thread(self._store_upload, principal.owner, upload, purpose)
        finally:
            await form.close()
        return stored.as_openai()

    def _store_upload(self, owner: str, upload: UploadFile, purpose: str) -> StoredFile:
        with _disk_errors():
            path = self._store.incoming()
            try:
                with path.open("xb") as target:
                    upload.file.seek(0)
                    shutil.copyfileobj(upload.file, target, _PIECE)
                if path.stat().st_size == 0:
                    raise invalid("The uploaded file is empty.", "file", "empty_file")
                return self._store.add(owner, _name(upload.filename), purpose, path)
            finally:
                path.unlink(missing_ok=True)

    async def listed(self, request: Request) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        query = request.query_params
        files, more = await asyncio.to_thread(
            self._store.listed,
            principal.owner,
            purpose=query.get("purpose"),
            after=query.get("after"),
            limit=page_limit(request, _LIMIT, _LIMIT),
            newest_first=query.get("order", "desc") != "asc",
        )
        return page([file.as_openai() for file in files], more)

    async def one(self, request: Request, file_id: str) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        return (await asyncio.to_thread(self._store.get, principal.owner, file_id)).as_openai()

    async def content(self, request: Request, file_id: str) -> Response:
        principal = await self._auth.principal(request, "datasets")
        file = await asyncio.to_thread(self._store.get, principal.owner, file_id)
        source = await asyncio.to_thread(self._store.open, file)
        headers = {"content-length": str(file.bytes)}
        return StreamingResponse(_pieces(source), headers=headers, media_type="application/octet-stream")

    async def delete(self, request: Request, file_id: str) -> dict[str, Any]:
        principal = await self._auth.principal(request, "datasets")
        await asyncio.to_thread(self._store.delete, principal.owner, file_id)
        return {"id": file_id, "object": "file", "deleted": True}


def files_router(store: FileStore, auth: Authenticator) -> APIRouter:
    """The routes of files; they need the scope datasets."""
    files = _Files(store, auth)
    router = APIRouter()
    router.add_api_route("/v1/files", files.create, methods=["POST"], response_model=None)
    router.add_api_route("/v1/files", files.listed, methods=["GET"], response_model=None)
    router.add_api_route("/v1/files/{file_id}", files.one, methods=["GET"], response_model=None)
    router.add_api_route("/v1/files/{file_id}", files.delete, methods=["DELETE"], response_model=None)
    router.add_api_route("/v1/files/{file_id}/content", files.content, methods=["GET"], response_model=None)
    return router


@contextmanager
def _disk_errors() -> Iterator[None]:
    """An upload lies on this machine's disk twice before it is stored: while it is received, and while it is put."""
    try:
        yield
    except OSError as error:
        raise Transient(
            f"the upload cannot be stored: {error.strerror or type(error).__name__}",
            remedy="Tell the operator of this gateway; its disk may be full.",
        ) from error


def _wanted(form: FormData) -> tuple[UploadFile, str]:
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(upload, UploadFile):
        raise invalid("Missing required parameter: 'file'.", "file", "missing_required_parameter")
    if not isinstance(purpose, str) or not purpose:
        raise invalid("Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter")
    if purpose not in PURPOSES:
        raise invalid(f"'{purpose}' is not a purpose. {did_you_mean(purpose, PURPOSES)}", "purpose", "invalid_value")
    if any(name.startswith("expires_after") for name in form):
        raise unsupported("expires_after", "Files stay until they are deleted; leave it out.")
    return upload, purpose


def _name(given: str | None) -> str:
    """The last part of the file's name: what a client calls it, never a path here."""
    return PurePath((given or "").replace("\\", "/")).name[:_NAME_MAX] or "upload"


async def _pieces(source: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.to_thread(source.read, _PIECE):
            yield piece
    finally:
        source.close()
