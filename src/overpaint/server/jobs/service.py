"""What every wire format stands on: jobs in, what happens to them out.

Wire formats turn their clients' words into a `Request` and a job's state back into theirs; nothing
else. All that waits for the disk or the database runs in threads.
"""

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from overpaint.engine.profile import Profile
from overpaint.engine.worker import EngineFactory, Shown, make_engine
from overpaint.errors import (
    ModelNotFoundError,
    QueueFullError,
    RequestError,
    StoreError,
    did_you_mean,
)
from overpaint.events import Step
from overpaint.imaging import sizing
from overpaint.models.library.index import LibraryIndex
from overpaint.request import Request
from overpaint.server.http.signed_links import LinkSigner
from overpaint.server.jobs.feed import Hub
from overpaint.server.jobs.references import check_names
from overpaint.server.jobs.supervisor import Supervisor
from overpaint.server.outbound.addresses import Reach, check_url
from overpaint.server.outbound.client import OutboundClient
from overpaint.server.outbound.image_fetch import ImageFetcher, ImageSources
from overpaint.server.settings import DAY_S, ServerSettings
from overpaint.server.store.database import Database, url_of
from overpaint.server.store.files import Files
from overpaint.server.store.jobs import ENDED, Job, Jobs, NewJob, Said
from overpaint.server.store.origins import NativeOrigin, Origin
from overpaint.server.store.outbox import EVENTS, Outbox
from overpaint.server.telemetry.logs import (
    JobChange,
    job_log_fields,
    log_event,
    log_job_change,
    log_upgrade,
    record_lost_attempts,
    request_id,
)
from overpaint.system.atomic_files import lock_file

if TYPE_CHECKING:
    from overpaint.server.telemetry.traces import TraceExporter  # whose libraries may be missing

Story = Said | Step | Shown
"""What is told of a job: what lasts, and what is true for now."""

POLL = 1.0
"""Seconds between looks at whether anything was said of jobs that are listened to and was not heard
here: another server may have them."""

SELDOM = 30.0
"""The same where there is no other, so that all is heard."""

AT_ONCE = 500
"""Names that are looked up in the store at once."""

ROOM_TO_WRITE = 3600.0
"""Seconds after which what another server has not written yet, it will not."""


class Service:
    """A running server, without its wire formats.

    Attributes:
        settings: as it was started.
        jobs: the store.
        outbox: its webhooks.
        links: to its pictures.
        files: uploads and results.
        entries: what requests may name beside models.
        hub: what happens now.
        outside: what asks servers elsewhere.
        fetcher: of pictures that requests name by URL.
        poll: seconds between two times that it wants to `look`.
        supervisor: the worker's.
    """

    def __init__(
        self,
        settings: ServerSettings,
        engine_factory: EngineFactory | None = None,
        traces: "TraceExporter | None" = None,
    ):
        """Open the store and start the worker.

        Args:
            settings: of the server.
            engine_factory: makes the worker's engine; by default the one that paints.
            traces: where spans of jobs go.

        Raises:
            StoreError: the store cannot be opened, or another server uses the folder.
            OutputError, RequestError: the profile cannot be used.
        """
        config = settings.engine_config()
        self._profile = config.profile or Profile()
        settings.data.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self._traces = traces
        self.files = Files(settings.data)
        self.entries = LibraryIndex(settings.home)
        self._alone = _hold(settings.data) if settings.store is None else None
        self.poll = SELDOM if self._alone else POLL
        self.files.sweep(0.0 if self._alone else ROOM_TO_WRITE)
        self.jobs = Jobs(open_database(settings.data, settings.store))
        self.outbox = Outbox(self.jobs.database)
        self.links = LinkSigner(
            self.outbox.secret("links"),  # No key has this digest.
            settings.http.signed_link_lifetime_s,
        )
        self.hub = Hub()
        self.outside = OutboundClient()
        self.fetcher = ImageFetcher(
            settings.fetch, self.outside, settings.fetching, settings.limits.upload_bytes
        )
        if self._alone:
            record_lost_attempts(self.jobs, self.jobs.expire(owners_are_gone=True), self.note)
        self.supervisor = Supervisor(
            self.jobs,
            self.files,
            engine_factory or partial(make_engine, config),
            owner=secrets.token_hex(16),
            models=settings.models,
            hear=self.hub.hear,
            settings=settings.worker,
            note=self.note,
            postprocess=settings.postprocess_config(),
        )
        self.draining = self.drained = False
        self.supervisor.start()

    def drain(self) -> None:
        """Take nothing more, let jobs end that end in time, give back the others."""
        self.draining = True
        self.supervisor.stop(self.settings.grace_s)
        self.drained = True
        self.hub.rouse()

    def close(self) -> None:
        """Let go of the store, and ask nobody any more."""
        self.outside.close()
        self.jobs.database.close()
        if self._alone:
            self._alone.close()

    def tidy(self) -> None:
        """Forget jobs and files that are older than they are kept.

        Raises:
            SQLAlchemyError, OSError: the store or the disk is out of order.
        """
        while old := self.jobs.old(self.settings.keep_days * DAY_S):
            for name in old:
                self.files.forget_results(name)
            self.jobs.forget(old)
        age = self.settings.keep_uploads_days * DAY_S
        unused = self.files.old(age)
        for at in range(0, len(unused), AT_ONCE):
            names = unused[at : at + AT_ONCE]
            for name in set(names) - self.jobs.in_use(names):
                self.files.forget(name, age)

    def look(self) -> None:
        """Tell those who listen to jobs what others than this server have stored of these.

        Raises:
            SQLAlchemyError: the store is out of order.
        """
        listened = self.hub.listened()
        for at in range(0, len(listened), AT_ONCE):
            names = listened[at : at + AT_ONCE]
            self.hub.compare(dict.fromkeys(names) | self.jobs.latest(names))

    def note(self, event: JobChange, job: Job) -> None:
        """Take down what happened to a job."""
        log_job_change(event, job)
        if self._traces and event in ENDED:
            try:
                self._traces.record_job(job, self.jobs.history(job.id))
            except SQLAlchemyError as error:
                log_event(logging.WARNING, "job not traced", error, **job_log_fields(job))

    # Jobs

    @contextlib.asynccontextmanager
    async def sources(self, key: str, urls: Mapping[str, str]) -> AsyncGenerator[ImageSources]:
        """Where the pictures of a request are, while they are looked at.

        Raises:
            RequestError, QueueFullError: as of `Fetcher.fetching`.
        """
        async with self.fetcher.fetch_images(key, urls) as fetched:
            yield ImageSources(self.files, fetched, self.settings.limits.body_bytes)

    async def repeated(self, key: str, token: str | None, body: str) -> Job | None:
        """The job that a token made, if it came before: then nothing of it is read or fetched.

        Raises:
            IdempotencyError: the token was used for something else.
        """
        if token is None:
            return None
        return await asyncio.to_thread(self.jobs.repeated, key, token, body)

    async def submit(
        self,
        request: Request,
        *,
        model: str | None = None,
        key: str = "",
        priority: int = 0,
        origin: Origin | None = None,
        webhook: str | None = None,
        webhook_events: Sequence[str] = EVENTS,
        token: str | None = None,
        body: str = "",
    ) -> Job:
        """Accept a job: once this returns, it ends exactly once, whatever happens.

        Raises:
            ModelNotFoundError: there is no such model here.
            QueueFullError: as much waits as may, or the server is about to end.
            IdempotencyError: the token was used for something else.
            RequestError: it names what is not here, or a size that the model does not draw.
            PictureError: its picture cannot be read.
            OSError: the disk is full.
        """
        name = model or self.settings.models[0]
        if name not in self.settings.models:
            raise ModelNotFoundError(
                f"no model {name!r} here.{did_you_mean(name, self.settings.models)}"
            )
        if self.draining:
            raise QueueFullError("this server is about to end; try again in a minute.", 0.0)
        if webhook:
            check_url(webhook, self.reach(key))

        known = {*self.settings.models, self.settings.refiner or ""}
        made = secrets.token_hex(16)
        trace = self._traces.current_context() if self._traces else {}

        def accept() -> Job:
            if self._disk_is_full():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            check_names(request, self.entries, known)
            native = self.supervisor.natives.get(name)
            if native:
                sizing.check_size(request, native)
            stored, files = self.files.pack(request)
            new = NewJob(
                made,
                key,
                name,
                stored,
                self._profile.alone(request, native or self.settings.native_side_px),
                (origin or NativeOrigin()).model_copy(
                    update={"request_id": request_id.get(), "trace": trace}
                ),
                webhook,
                webhook_events,
                files,
                priority,
                token,
                body,
            )
            return self.jobs.submit(new, self.settings.limits)

        job = await asyncio.to_thread(accept)
        if job.id == made:  # and not of an earlier request with the same token
            self.note("accepted", job)
        self.supervisor.wake()
        return job

    def checked(self, field: str, wanted: bool) -> bool:
        """Whether a job's pictures are checked, whose client wants that or not in its `field`.

        Raises:
            RequestError: the operator does not leave that to clients.
        """
        given = self.settings
        if not wanted and given.safety_checker and not given.safety_optional:
            raise RequestError(field, "this server checks every picture; leave it out.")
        return wanted

    def reach(self, key: str) -> Reach:
        """Where webhooks of a key's jobs may go: who has none is on this machine already."""
        return "all" if self.settings.allow_private_webhooks else "public" if key else "loopback"

    async def cancel(self, name: str) -> Job | None:
        """Ask for a job's end."""
        before = await asyncio.to_thread(self.jobs.get, name)
        job = await asyncio.to_thread(self.jobs.cancel, name)
        if before and before.state == "queued" and job and job.state == "canceled":
            # Those under way are the supervisor's to end.
            await asyncio.to_thread(self.note, "canceled", job)
        self.supervisor.cancel(name)
        if job and job.state in ENDED:  # it waited, so the worker has nothing to say of it
            self.hub.hear(name, "ended")
        return job

    async def follow(self, name: str, after: int = 0) -> AsyncGenerator[Story]:
        """A job's story: its history after a number, where it is now, and on to its end.

        A server that ends leaves off when nothing is under way any more.
        """
        with self.hub.listening(name) as listener:
            now, ended = self.hub.now(name), False
            fresh: list[Step | Shown | None] = [now.step, *now.previews.values()]
            while not ended:
                job = await asyncio.to_thread(self.jobs.get, name)
                ended = job is None or job.state in ENDED  # then the history has it too
                for said in await asyncio.to_thread(self.jobs.history, name, after):
                    after, ended = said.number, ended or said.kind in ENDED
                    yield said
                listener.known = after
                for event in fresh:
                    if event and not ended:
                        yield event
                fresh.clear()
                if self.drained:
                    return
                while not ended:
                    event = await listener.queue.get()
                    if not isinstance(event, Step | Shown):
                        break  # there is something new in the history
                    yield event

    async def ended(self, name: str, seconds: float) -> Job | None:
        """A job once it has ended, or as it is after so many seconds or when the server ends."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        with self.hub.listening(name, passing=False) as listener:
            while True:
                job = await asyncio.to_thread(self.jobs.get, name)
                left = until - clock()
                if job is None or job.state in ENDED or left <= 0 or self.drained:
                    return job
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: in Python 3.11 that swallows a cancellation.
                    async with asyncio.timeout(left):
                        await listener.queue.get()  # there is something new to look at

    def _disk_is_full(self) -> bool:
        """Whether what is left is for the results of jobs that were accepted already."""
        return shutil.disk_usage(self.settings.data).free < self.settings.limits.free_disk_bytes

    # Health

    def unready(self) -> list[str]:
        """What stands in the way of accepting jobs; nothing if it is ready."""
        found = list[str]()
        if self.draining:
            found.append("it is about to end")
        if not self.supervisor.ready:
            failures = self.supervisor.failures
            died = f", after {failures} in a row that died as they started; its errors say why"
            found.append(f"the worker is starting{died if failures else ''}")
        try:
            self.jobs.counts()
        except Exception as error:
            # No more of it: anybody may ask, and it names hosts, tables and values.
            found.append(f"the job store fails: {type(error).__name__}")
        if self._disk_is_full():
            found.append("the disk is full")
        return found


def open_database(data: Path, store: str | None) -> Database:
    """Open a server's job store: create a new one, upgrade an older one.

    Args:
        data: the server's folder.
        store: URL of the job store, unless it is in `data`.

    Raises:
        StoreError: the store cannot be opened or upgraded, or is newer than this program.
    """
    return Database(url_of(data, store), upgrade=True, report=log_upgrade)


def prepare_store(data: Path, store: str | None) -> None:
    """Create or upgrade a server's job store before the server starts.

    Here an error ends the command with one sentence, and no server has started.

    Args:
        data: as for `open_database`.
        store: as for `open_database`.

    Raises:
        StoreError: another server uses the folder, or as `open_database`.
    """
    data.mkdir(parents=True, exist_ok=True)
    lock = contextlib.closing(_hold(data)) if store is None else contextlib.nullcontext()
    with lock:
        open_database(data, store).close()


def _hold(folder: Path) -> sqlite3.Connection:
    """Have a folder that no other server has."""
    try:
        return lock_file(folder / "server.lock")
    except BlockingIOError as error:
        raise StoreError(
            f"another server has the folder {folder}. Give this one another with --data; servers "
            "that share one need a --store on Postgres."
        ) from error
