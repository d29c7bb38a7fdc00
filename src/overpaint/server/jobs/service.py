"""The service that every dialect uses: it accepts, cancels and follows jobs.

A dialect translates its clients' requests into a `Request`, and a job's state into its responses.
The service calls the disk and the database in threads, so that the event loop never waits for them.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from overpaint.engine.messages import PreviewImage
from overpaint.engine.profile import Profile
from overpaint.engine.worker import EngineFactory, make_engine
from overpaint.errors import ModelNotFoundError, QueueFullError, RequestError, did_you_mean
from overpaint.events import Step
from overpaint.models.library.index import LibraryIndex
from overpaint.models.library.served import find_native_size
from overpaint.network.addresses import Reach, check_url
from overpaint.network.client import OutboundClient
from overpaint.request import Request
from overpaint.server.http.request_budget import count_bytes
from overpaint.server.http.signed_links import LinkSigner
from overpaint.server.http.threads import run_in_write_thread
from overpaint.server.jobs import admission
from overpaint.server.jobs.cleanup import Retention, split_names
from overpaint.server.jobs.feed import JobFeed
from overpaint.server.jobs.readiness import list_obstacles
from overpaint.server.jobs.references import check_names
from overpaint.server.jobs.store_access import lock_folder, open_database
from overpaint.server.jobs.supervisor import Supervisor
from overpaint.server.outbound.image_fetch import ImageFetcher, ImageSources
from overpaint.server.settings import SDXL_SIDE_PX, ServerSettings
from overpaint.server.store.files import Files, prepare_data_folder
from overpaint.server.store.job_rows import ENDED, HistoryEntry, Job, NewJob
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.origins import NativeOrigin, Origin
from overpaint.server.store.outbox import WEBHOOK_EVENTS, Outbox
from overpaint.server.store.uploads import Uploads
from overpaint.server.telemetry.logs import (
    JobChange,
    job_log_fields,
    log_event,
    log_job_change,
    record_lost_attempts,
    request_id,
)

if TYPE_CHECKING:
    from overpaint.server.telemetry.traces import TraceExporter  # whose libraries may be missing

T = TypeVar("T")

Story = HistoryEntry | Step | PreviewImage
"""An event of a job: an entry of its stored history, or a step or preview, which are not stored."""

SHARED_STORE_POLL_S = 1.0
"""Seconds between two looks for events of followed jobs that other servers have stored."""

OWN_STORE_POLL_S = 30.0
"""Seconds between these looks if no other server uses the store."""

UNFINISHED_FILE_LIFETIME_S = 3600.0
"""Seconds after which a partly written file of another server is removed."""


class Service:
    """A running server, without its dialects.

    Attributes:
        settings: of the server.
        jobs: the job store.
        outbox: webhooks of the store.
        links: signs links to results.
        files: uploads and results.
        uploads: names and times of uploads, by API key.
        entries: LoRAs, control nets and embeddings that requests can name.
        feed: updates of running jobs.
        outside: the HTTP client for other servers.
        fetcher: fetches pictures that requests name by URL.
        poll: seconds between two calls of `look`.
        retention: removes expired jobs and files.
        supervisor: of the worker.
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
            traces: exporter of the jobs' spans.

        Raises:
            StoreError: the store cannot be opened, or another server uses the folder.
            OutputError, RequestError: the profile cannot be used.
        """
        config = settings.engine_config()
        self._profile = config.profile or Profile()
        self._job_memory_bytes = config.job_memory_bytes
        prepare_data_folder(settings.data)
        self.settings = settings
        self._traces = traces
        self.files = Files(settings.data)
        self.entries = LibraryIndex(settings.home, settings.models_dirs)
        self._alone = lock_folder(settings.data) if settings.store is None else None
        self.poll = OWN_STORE_POLL_S if self._alone else SHARED_STORE_POLL_S
        self.files.delete_partial_files(0.0 if self._alone else UNFINISHED_FILE_LIFETIME_S)
        self.jobs = Jobs(open_database(settings.data, settings.store, settings.database))
        self.outbox = Outbox(self.jobs.database, settings.webhooks.concurrent_deliveries_per_key)
        self.uploads = Uploads(self.jobs.database)
        self.retention = Retention(settings, self.jobs, self.uploads, self.files)
        self.links = LinkSigner(
            self.outbox.get_secret("links"),  # no API key has this digest
            settings.http.signed_link_lifetime_s,
        )
        self.feed = JobFeed()
        self.outside = OutboundClient()
        self.fetcher = ImageFetcher(
            settings.fetch, self.outside, settings.fetching, settings.limits.upload_bytes
        )
        if self._alone:
            record_lost_attempts(
                self.jobs, self.jobs.requeue_expired(owners_are_gone=True), self.note
            )
        self.supervisor = Supervisor(
            self.jobs,
            self.files,
            engine_factory or partial(make_engine, config),
            owner=secrets.token_hex(16),
            models=settings.models,
            on_update=self.feed.publish,
            settings=settings.worker,
            record_change=self.note,
            postprocess=settings.postprocess_config(),
        )
        self._native_sides_px: dict[str, int] = {}  # from files, until the worker reports them
        self.draining = self.drained = False
        self.supervisor.start()

    def drain(self) -> None:
        """Accept no more jobs, let running jobs finish in time, and requeue the others."""
        self.draining = True
        self.supervisor.stop(self.settings.grace_s)
        self.drained = True
        self.feed.wake_all()

    def close(self) -> None:
        """Close the store and the HTTP client."""
        self.outside.close()
        self.jobs.database.close()
        if self._alone:
            self._alone.close()

    def look(self) -> None:
        """Wake listeners whose jobs have events that other servers have stored.

        Raises:
            SQLAlchemyError: the store fails.
        """
        for names in split_names(self.feed.followed_jobs()):
            self.feed.wake_outdated(dict.fromkeys(names) | self.jobs.get_latest_numbers(names))

    def note(self, event: JobChange, job: Job) -> None:
        """Log a state change of a job, and export its spans if it has ended."""
        log_job_change(event, job)
        if self._traces and event in ENDED:
            try:
                self._traces.record_job(job, self.jobs.list_history(job.id))
            except SQLAlchemyError as error:
                log_event(logging.WARNING, "job not traced", error, **job_log_fields(job))

    # Jobs

    @contextlib.asynccontextmanager
    async def sources(self, key: str, urls: Mapping[str, str]) -> AsyncGenerator[ImageSources]:
        """Provide the pictures of a request while a dialect reads them.

        Raises:
            RequestError, QueueFullError: see `ImageFetcher.fetch_images`.
        """
        async with self.fetcher.fetch_images(key, urls, count_bytes) as fetched:
            yield ImageSources(self.files, fetched, self.settings.limits.body_bytes)

    async def put_upload(self, data: bytes, record: Callable[[str], T]) -> T:
        """Store the content of an upload, then record it in the same thread.

        Args:
            data: the content.
            record: receives the SHA-256 of the content, which names it.

        Raises:
            OSError: the disk is full.
        """

        def store() -> T:
            admission.check_disk(self.settings.data, self.settings.limits)
            return record(self.files.put(data))

        return await run_in_write_thread(store)

    async def repeated(self, key: str, token: str | None, body: str) -> Job | None:
        """Return the job that a request with the same idempotency key made before, if any.

        Then the server neither reads nor fetches the pictures again.

        Raises:
            IdempotencyError: the key was used for another request.
        """
        if token is None:
            return None
        return await asyncio.to_thread(self.jobs.find_repeated, key, token, body)

    async def submit(
        self,
        request: Request,
        *,
        model: str | None = None,
        key: str = "",
        priority: int = 0,
        origin: Origin | None = None,
        webhook: str | None = None,
        webhook_events: Sequence[str] = WEBHOOK_EVENTS,
        token: str | None = None,
        body: str = "",
    ) -> Job:
        """Accept a job. Once this returns, the job ends exactly once, even if processes are killed.

        Raises:
            ModelNotFoundError: the server does not have the model.
            QueueFullError: the queue is full, or the server is about to end.
            IdempotencyError: the idempotency key was used for another request.
            RequestError: the request names an unknown LoRA or control net, or the model does not
                draw its size.
            PictureError: a picture cannot be read.
            OSError: the disk is full.
        """
        name = model or self.settings.models[0]
        if name not in self.settings.models:
            raise ModelNotFoundError(
                f"There is no model {name!r} here.{did_you_mean(name, self.settings.models)}"
            )
        if self.draining:
            raise QueueFullError("this server is about to end; try again in a minute.", 0.0)
        if webhook:
            check_url(webhook, self.reach(key))

        settings = self.settings
        known = {*settings.models, settings.refiner or ""}
        made = secrets.token_hex(16)
        trace = self._traces.current_context() if self._traces else {}

        def accept() -> Job:
            admission.check_disk(settings.data, settings.limits)
            check_names(request, self.entries, known)
            if native := self.supervisor.natives.get(name):
                admission.check_drawable(request, native)
            side = self.native_side_px(name)
            admission.check_room(request, side, settings.limits, self._job_memory_bytes)
            stored, files = self.files.pack_request(request)
            known_now = {
                "request_id": request_id.get(),
                "trace": trace,
                "set_fields": tuple(sorted(request.model_fields_set)),
            }
            kept = (origin or NativeOrigin()).model_copy(update=known_now)
            admission.check_text(stored, kept, settings.limits)
            new = NewJob(
                made,
                key,
                name,
                stored,
                self._profile.alone(request, side),
                kept,
                webhook,
                webhook_events,
                files,
                priority,
                token,
                body,
            )
            return self.jobs.submit(new, settings.limits)

        job = await run_in_write_thread(accept)
        if job.id == made:  # else an earlier request made it
            self.note("accepted", job)
        self.supervisor.wake()
        return job

    def native_side_px(self, model: str | None = None) -> int:
        """Return the side in pixels that a model draws, also before it is loaded.

        Args:
            model: one of the server's models; by default the first one.
        """
        name = model or self.settings.models[0]
        if native := self.supervisor.natives.get(name):
            return native
        if name not in self._native_sides_px:
            found = find_native_size(name, self.entries)
            self._native_sides_px[name] = found or SDXL_SIDE_PX
        return self._native_sides_px[name]

    def checked(self, field: str, wanted: bool) -> bool:
        """Return whether the safety checker checks a job's pictures.

        Args:
            field: the client's field for that, named in the error.
            wanted: its value.

        Raises:
            RequestError: the client wants no check, and the operator does not allow that.
        """
        given = self.settings
        if not wanted and given.safety_checker and not given.safety_optional:
            raise RequestError(field, "This server checks every picture; leave it out.")
        return wanted

    def reach(self, key: str) -> Reach:
        """Return where webhooks may go; clients without an API key are on this machine."""
        return "all" if self.settings.allow_private_webhooks else "public" if key else "loopback"

    async def cancel(self, name: str) -> Job | None:
        """Cancel a job."""
        before = await asyncio.to_thread(self.jobs.get, name)
        job = await run_in_write_thread(self.jobs.cancel, name)
        if before and before.state == "queued" and job and job.state == "canceled":
            # The supervisor records the end of running jobs.
            await asyncio.to_thread(self.note, "canceled", job)
        self.supervisor.cancel(name)
        if job and job.state in ENDED:  # a queued job, of which no worker reports the end
            self.feed.publish(name, "ended")
        return job

    async def follow(self, name: str, after: int = 0) -> AsyncGenerator[Story]:
        """Yield a job's events: its stored history, its current state, then new events to its end.

        A server that stops ends this after its last running job.

        Args:
            name: id of the job.
            after: number of the last stored event that the client has.
        """
        with self.feed.listen(name) as listener:
            now, ended = self.feed.progress(name), False
            fresh: list[Step | PreviewImage | None] = [now.step, *now.previews.values()]
            while not ended:
                job = await asyncio.to_thread(self.jobs.get, name)
                ended = job is None or job.state in ENDED  # then the history has it too
                for said in await asyncio.to_thread(self.jobs.list_history, name, after):
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
                    if not isinstance(event, Step | PreviewImage):
                        break  # there is something new in the history
                    yield event

    async def ended(self, name: str, seconds: float) -> Job | None:
        """Return a job once it has ended, the server stops, or the seconds are over."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        with self.feed.listen(name, live=False) as listener:
            while True:
                job = await asyncio.to_thread(self.jobs.get, name)
                left = until - clock()
                if job is None or job.state in ENDED or left <= 0 or self.drained:
                    return job
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: in Python 3.11 that swallows a cancellation.
                    async with asyncio.timeout(left):
                        await listener.queue.get()  # there is something new to look at

    def unready(self) -> list[str]:
        """Return the reasons why the server is not ready; an empty list if it is."""
        return list_obstacles(
            self.jobs,
            self.supervisor,
            self.settings.data,
            self.settings.limits.free_disk_bytes,
            draining=self.draining,
        )
