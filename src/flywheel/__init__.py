"""The data flywheel for image classification: data, sweep, evaluate, serve, simulate, retrain."""


class FlywheelError(Exception):
    """What a user can mend: the message is one sentence that says what is wrong and what to do."""
