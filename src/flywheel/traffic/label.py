"""The command `label`: draw a sample of production images and serve the page on which a person labels them."""

from __future__ import annotations

import getpass
import logging
import secrets
import socket

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.registry import Registry
from flywheel.traffic import TrafficError, feedback, sampling
from flywheel.traffic.feedback import FeedbackError
from flywheel.traffic.labels import DEFAULT_LABELLER, LabelLog
from flywheel.traffic.sampling import Sample

log = logging.getLogger(__name__)


def run(params: Params, registry: Registry, labeller: str, port: int, *, new: bool = False) -> None:
    """Serve the page until Finish is pressed. Raises StageError, TrafficError.

    The sample is the last one of the production model while images of it wait, otherwise, or if `new`, another one.
    """
    import uvicorn

    from flywheel.data import dataset
    from flywheel.traffic.label_app import LabelApp, Session

    data = stage.dataset_of(params, registry)
    ref = registry.aliases(params.registered_model).get("production")
    if ref is None:
        raise TrafficError(f"there is no production model; run make evaluate serve PROFILE={params.profile}")
    sample = choose_sample(params, registry, ref, new=new)
    opened = dataset.open_directory(registry.open(data))
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise TrafficError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None
    port = listening.getsockname()[1]
    writer = f"page{sample.number}-{secrets.token_hex(4)}"  # labels.PAGE
    labels = LabelLog(params.store_paths, writer, lambda: opened.class_names, params.traffic.max_age_days)
    session = Session(params.store_paths, sample, labels, labeller or _user(), params.label.second_above)

    def finish() -> None:
        server.should_exit = True

    app = LabelApp(params.store_paths, session, opened, port, finish)
    server = uvicorn.Server(uvicorn.Config(app.build(), log_config=None, access_log=False, lifespan="off"))
    # The URL holds a secret, so it goes to the terminal and not into the log file.
    print(f"label: open http://127.0.0.1:{port}/?token={app.token}", flush=True)
    log.info(f"label: {len(sample.images):,} images of {sample.model.partition('@')[0]}; Finish on the page ends this")
    try:
        server.run(sockets=[listening])
    finally:
        session.finish()
        state = session.state()
        log.info(f"label: {state['done']:,} of {state['total']:,} images have a label; make collect publishes them")


def choose_sample(params: Params, registry: Registry, ref: str, *, new: bool = False) -> Sample:
    """Return the unfinished sample of a model, or another one. Raises TrafficError that says what to do.

    People who start at the same time get the same sample.
    """
    with files.lock(params.store_paths.lock("label"), wait=True):
        unfinished = None if new else sampling.unfinished(params.store_paths, ref)
        if unfinished is not None:
            return unfinished
        try:
            seen = feedback.seen(registry, registry.resolve(ref))
        except FeedbackError as error:
            log.info(f"label: images that the model was trained on cannot be left out: {error}")
            seen = frozenset()
        sample = sampling.draw(params.store_paths, ref, params.label.budget, seen)
    if sample is None:
        raise TrafficError(
            "no image waits for a label: none of the production model's is kept, or all are labelled; "
            f"traffic.keep_images is {params.traffic.keep_images:g} (above 0, make serve keeps images)"
        )
    return sample


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return DEFAULT_LABELLER
