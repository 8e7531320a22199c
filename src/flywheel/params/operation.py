"""All sections of params.yaml but data, recipe and sweep."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from flywheel.params.base import NOT_IDENTITY, Cpus, FilePath, Gpus, Section, Seed, Text

COLLECTION = re.compile(r"wandb-registry-[\w-]+/[A-Za-z0-9][\w.-]{0,127}")


def _a_collection(value: str) -> str:
    if not COLLECTION.fullmatch(value):
        raise ValueError(f"must be wandb-registry-<registry>/<collection> (got {value!r})")
    return value


def _base_url(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"https?://[^/\s?#]+[^\s?#]*", value):
        raise ValueError(f"must be like http://127.0.0.1:8000 (got {value!r})")
    return value


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("YAML reads off and on as false and true; write disabled, offline, online or auto")
    return value


class Gate(Section):
    """The rules that a model must pass before it goes into production."""

    floor_accuracy: Annotated[float, Field(ge=0, le=1)] = Field(description="minimum test accuracy of the first model")
    allow_unlearned_classes: bool = Field(
        description="accept a first model that recognises none of the test images of a class with five or more"
    )
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        description="how much test accuracy a candidate may lose against production and against the best model ever "
        "there, by the lower 95 % bound; 0: it must be shown better (docs/gate.md)"
    )
    class_margin: Annotated[float, Field(ge=0, le=1)] = Field(
        description="refuse if a class's interval (95 % for all classes together) is entirely below minus this"
    )
    replay: Annotated[int, Field(ge=0, le=100_000)] = Field(
        description="the candidate must answer this many of the newest captured images; 0: none"
    )
    max_latency_ratio: Annotated[float, Field(ge=0.1, le=1000)] | None = Field(
        description="refuse a candidate that takes more than this times as long as production for one image; "
        "null: only report the ratio"
    )


class Promotion(Section):
    """Whether models go into production automatically."""

    auto: bool = Field(description="promote a model that passes the gate")


class Serve(Section):
    """The server that `make serve` starts: address, replicas and limits."""

    host: Text = Field(description="address to listen on; 127.0.0.1: this machine only")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="HTTP port")
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="minimum number of copies of the model")
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="above min_replicas, Ray Serve autoscales")
    cpus_per_replica: Cpus = Field(description="CPUs per replica, also its number of torch threads")
    gpus_per_replica: Gpus = Field(
        description="GPUs per replica: 0.5 puts two replicas on a GPU; auto: 1 if there is a GPU, otherwise 0"
    )
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(description="maximum size of a batch, in images")
    max_queued_images: Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="maximum number of waiting images per replica; further requests get 503 with Retry-After"
    )
    max_body_bytes: Annotated[int, Field(ge=1_000, le=10**9)] = Field(description="larger requests get 413")
    max_parts: Annotated[int, Field(ge=1, le=10_000)] = Field(description="maximum images in a multipart request")
    header_timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        description="how long the header of a request may take to arrive; then 408"
    )
    request_timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        description="how long the body may take to arrive (then 408), and the model to answer (504, 5 s later)"
    )
    cors_origins: tuple[Text, ...] = Field(
        description='origins whose pages may call the server, such as https://example.org, or "*"; []: none'
    )
    poll_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(description="time between checks of the production alias")
    start_timeout_s: Annotated[float, Field(ge=5, le=3600)] = Field(description="how long make serve waits for it")
    access_log: bool = Field(description="log requests as JSON in store/<profile>/logs/access-<replica>.jsonl")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Serve:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        if self.max_queued_images < self.max_batch_size:
            raise ValueError(
                f"max_queued_images ({self.max_queued_images}) is below max_batch_size ({self.max_batch_size}): "
                "no batch would fill"
            )
        return self


class Traffic(Section):
    """What the server keeps of production traffic. Every answer is recorded; images only if you ask for it."""

    keep_images: Annotated[float, Field(ge=0, le=1)] = Field(
        description="fraction of the answered images that is kept, for make label; 0: none"
    )
    max_bytes: Annotated[int, Field(ge=1_000_000, le=10**15)] = Field(
        description="maximum size of records and images; the oldest images without a label are removed first"
    )
    max_age_days: Annotated[float, Field(gt=0, le=3650)] = Field(
        description="records, images and labels are removed after this time"
    )
    min_free_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="keep no image, and remove old ones, while less than this fraction of the disk is free"
    )
    share: bool = Field(description="send kept images to W&B, as part of the feedback, and show them in the report")


class Label(Section):
    """The labelling of production images by people, with `make label`."""

    budget: Annotated[int, Field(ge=1, le=100_000)] = Field(description="number of images in a sample")
    second_above: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        description="show an image again if its label contradicts an answer of higher confidence; null: never"
    )


class Monitor(Section):
    """The alarm of `make monitor`, which needs no labels."""

    tolerance: Annotated[float, Field(ge=0, le=0.5)] = Field(
        description="loss of accuracy that raises no alarm, beside what chance may explain in the test images"
    )
    false_alarm_every: Annotated[int, Field(ge=100, le=10**15)] = Field(
        description="without a loss, at least so many independent predictions pass on average until an alarm"
    )


class Simulate(Section):
    """The client that simulates production traffic: it sends the simulation images to the server."""

    url: Annotated[str | None, AfterValidator(_base_url), NOT_IDENTITY] = Field(
        description="address of the server, such as http://127.0.0.1:8000; null: the server that make serve started"
    )
    requests: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        description="number of simulation images to send, drawn at random; null: all"
    )
    seed: Seed = Field(description="seed of the draw, of the order and of the wrong labels")
    drift: Literal["data", "none"] = Field(
        description="data: the simulation images with the drift of the section data; none: the same ones without it"
    )
    truth: Literal["known", "api", "none"] = Field(
        description="known: compare the answers with the labels and publish these; api: send the labels to /feedback, "
        "for make collect; none: traffic without labels"
    )
    label_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        description="truth api: fraction of the images whose label is sent, drawn at random"
    )
    label_delay_s: Annotated[float, Field(ge=0, le=86_400), NOT_IDENTITY] = Field(
        description="truth api: time from the last answer to the labels"
    )
    label_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        description="fraction of the published labels that are wrong, drawn at random; for studies"
    )
    concurrency: Annotated[int, Field(ge=1, le=1024), NOT_IDENTITY] = Field(description="requests in flight at a time")
    timeout_s: Annotated[float, Field(gt=0, le=3600), NOT_IDENTITY] = Field(
        description="timeout for connecting, and again for waiting for the answer"
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000), NOT_IDENTITY] = Field(
        description="maximum number of attempts per image; 5xx answers, resets and timeouts are retried"
    )
    max_error_fraction: Annotated[float, Field(ge=0, lt=1), NOT_IDENTITY] = Field(
        description="maximum fraction of images without an answer; above it, the simulation fails and publishes nothing"
    )
    table_rows: Annotated[int, Field(ge=0, le=10_000), NOT_IDENTITY] = Field(
        description="maximum number of right predictions in the W&B table, drawn at random; 0: no table"
    )


class Retrain(Section):
    """Continue training the production model on the original images and the labelled production images."""

    examples: Literal["all", "failures"] = Field(
        description="all: every labelled production image of the side train; failures: only those answered wrongly, "
        "as in the original pipeline (docs/retraining.md compares them)"
    )
    min_failures: Annotated[int, Field(ge=1, le=10_000_000), NOT_IDENTITY] = Field(
        description="number of new failures on the side train from which make retrain trains"
    )
    min_examples: Annotated[int, Field(ge=1, le=10_000_000), NOT_IDENTITY] = Field(
        description="number of new labelled images there from which it trains, too; examples=failures ignores it"
    )
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(description="passes over originals and production images")
    weight: Annotated[float, Field(gt=0, le=5)] = Field(
        description="how often an epoch uses each production image, beside every original once; fractions are rounded "
        "at random"
    )
    learning_rate_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        description="learning rate as a fraction of the rate in the sweep's recipe"
    )
    control: Annotated[bool, NOT_IDENTITY] = Field(
        description="train a second model on as many random labelled images as there are failures, for comparison; "
        "doubles the time"
    )
    seed: Seed = Field(description="seed of image order, augmentation, rounding and the arm random")


class Tracking(Section):
    """The connection to Weights & Biases."""

    wandb: Annotated[Literal["auto", "online", "offline", "disabled"], BeforeValidator(_no_switch), NOT_IDENTITY] = (
        Field(description="auto: online if there is a key, W&B answers and nothing asks for less; else offline")
    )
    project: Annotated[Text | None, NOT_IDENTITY] = Field(description="W&B project; null: flywheel-<profile>")
    registry: Annotated[Annotated[str, AfterValidator(_a_collection)] | None, NOT_IDENTITY] = Field(
        description="W&B registry and collection that models are linked to, one per profile; "
        "null: wandb-registry-model/<data.name>-classifier"
    )
    machine_info: Annotated[bool, NOT_IDENTITY] = Field(
        description="send host name, paths, command line, git state and machine load to W&B, of runs that are online"
    )


class Paths(Section):
    """Folders on disk. Each profile has its own subfolder in the store and in the reports."""

    store: Annotated[FilePath, NOT_IDENTITY] = Field(description="folder of artifacts, receipts and journals")
    reports: Annotated[FilePath, NOT_IDENTITY] = Field(description="folder of results and pictures")
    cache: Annotated[FilePath, NOT_IDENTITY] = Field(description="folder of downloads, shared by all profiles")
    checkpoints: Annotated[FilePath | None, NOT_IDENTITY] = Field(
        description="where running trials save checkpoints: a directory or an fsspec URI that every node of a cluster "
        "reaches; null: in the store"
    )
