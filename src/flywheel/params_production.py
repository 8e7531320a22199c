"""The params of the half of the wheel that faces production: gate, promotion, serve, simulate, retrain."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from flywheel.params_section import NOT_IDENTITY, Section, Seed, Text, whole_above_one


def _base_url(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"https?://[^/\s?#]+[^\s?#]*", value):
        raise ValueError(f"must be like http://127.0.0.1:8000 (got {value!r})")
    return value


class Evaluate(Section):
    """What the evaluation tells besides."""

    test_time_augmentation: bool = Field(
        description="also report the accuracy of means over shifted and, if trained with them, mirrored views; "
        "the gate and serving never use them"
    )


class Gate(Section):
    """What a model must show before it goes into production."""

    floor_accuracy: Annotated[float, Field(ge=0, le=1)] = Field(description="test accuracy of a first model, at least")
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        description="test accuracy that a candidate may lose to production, or to the best ever, within the 95 % "
        "interval; 0: it must be shown better (docs/gate.md)"
    )
    class_margin: Annotated[float, Field(ge=0, le=1)] = Field(
        description="a class is harmed if its interval (95 % for all classes together) lies wholly below minus this"
    )


class Promotion(Section):
    """How models reach production."""

    auto: bool = Field(description="promote what passes the gate")


class Serve(Section):
    """The server: how much it takes, where it listens, how it grows."""

    host: Text = Field(description="where HTTP is answered; 127.0.0.1 = this machine only")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="of HTTP")
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="copies of the model, at least")
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="at most; more than min_replicas autoscales")
    cpus_per_replica: Annotated[float, Field(ge=0.1, le=1024), AfterValidator(whole_above_one)] = Field(
        description="also the torch threads of a replica"
    )
    gpus_per_replica: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=64), AfterValidator(whole_above_one)], Field()
    ] = Field(description="auto: 1 where there is one; 0.5 = two replicas a GPU")
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(description="images that the model takes at once")
    max_queued_images: Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="images that wait in a replica; beyond them the answer is 503 with Retry-After"
    )
    max_body_bytes: Annotated[int, Field(ge=1_000, le=10**9)] = Field(description="of a request; beyond it 413")
    max_parts: Annotated[int, Field(ge=1, le=10_000)] = Field(description="images of a multipart request")
    poll_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(description="how often a replica looks at production")
    start_timeout_s: Annotated[float, Field(ge=5, le=3600)] = Field(description="until the server answers, at most")
    access_log: bool = Field(description="a line of JSON a request in store/<profile>/logs/access-<replica>.jsonl")

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


class Simulate(Section):
    """The client that plays production traffic: the simulation images, sent to the server."""

    url: Annotated[str | None, AfterValidator(_base_url), NOT_IDENTITY] = Field(
        description="of the server, such as http://127.0.0.1:8000; null: what make serve started"
    )
    requests: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        description="how many of the simulation images to send, drawn at random; null: all"
    )
    seed: Seed = Field(description="of the draw and of the order")
    concurrency: Annotated[int, Field(ge=1, le=1024), NOT_IDENTITY] = Field(description="requests in flight at a time")
    timeout_s: Annotated[float, Field(gt=0, le=3600), NOT_IDENTITY] = Field(
        description="to connect, and again for each wait for an answer"
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000), NOT_IDENTITY] = Field(
        description="for each image: 5xx answers, resets and timeouts are tried again"
    )
    max_error_fraction: Annotated[float, Field(ge=0, lt=1), NOT_IDENTITY] = Field(
        description="of the images may go without an answer; beyond, the simulation ends and publishes nothing"
    )
    table_rows: Annotated[int, Field(ge=0, le=10_000), NOT_IDENTITY] = Field(
        description="right predictions in the W&B table, at most, drawn at random; 0: no table"
    )


class Retrain(Section):
    """Training on from production with the failures it had."""

    min_failures: Annotated[int, Field(ge=1, le=10_000_000), NOT_IDENTITY] = Field(
        description="new ones for training that make it worth while; fewer: nothing is done"
    )
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(description="passes over the mix")
    weight: Annotated[float, Field(gt=0, le=5)] = Field(
        description="how often each failure stands in the mix, beside every original once; fractions by seeded rounding"
    )
    learning_rate_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        description="of the learning rate that the sweep's model was trained with"
    )
    control: Annotated[bool, NOT_IDENTITY] = Field(
        description="train a second time on right answers in place of the failures, to compare; doubles the time"
    )
    seed: Seed = Field(description="of the order, the augmentation, the rounding and the control arm's draw")
