"""Everything that a user can get wrong. Each message is one line that names the file, the key and both shapes.

The command line prints the line on stderr and exits 2; in Python they are exceptions with one common base. KernelError
is apart: a wrong kernel is the mistake of whoever wrote it.
"""


class LoracleError(Exception):
    """The user's mistake, or something that this machine cannot do. Never a bug of ours."""


class ConfigError(LoracleError):
    """A config.json that is damaged, or names something that is not supported."""


class WeightsError(LoracleError):
    """A checkpoint that is damaged, incomplete, or of another shape than its config says."""


class AdapterError(LoracleError):
    """An adapter folder that cannot be honoured in full. Nothing of it is loaded."""


class DataError(LoracleError):
    """Data that cannot be trained on (a row of another form, too long), or a checkpoint that is not of this run."""


class RequestError(LoracleError):
    """A request that cannot be served: an unknown adapter, ids out of range, an empty prompt."""


class LogitsError(LoracleError):
    """Logits from which no token can be chosen: NaN, or -inf alone. A NaN is never served as a token."""


class CacheFull(LoracleError):
    """No KV block, or no adapter slot, is free. Raised before anything is written."""


class DeviceError(LoracleError):
    """The device is not there, or has too little memory."""


class AdapterWarning(UserWarning):
    """An adapter that is honoured in full, but has something about it that its owner should know."""


class KernelError(RuntimeError):
    """A kernel is wrong: it does not compile, or the launch failed, or the checker found a bug.

    No LoracleError, because that is the user's mistake, and this is one of whoever wrote the kernel.
    """

    def __init__(
        self,
        message: str,
        kernel: str = "",
        kind: str = "",
        file: str = "",
        line: int = 0,
        block: tuple[int, ...] = (),
        thread: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.kernel, self.kind, self.file, self.line, self.block, self.thread = kernel, kind, file, line, block, thread
